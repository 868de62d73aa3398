// The mapping thread.

// r15 control pages, r14d last sequence number, r12 next command, r13d commands left, ebp 1 in a vCPU thread.
    .globl hv_stub_start
hv_stub_start:
    mov     rdi, {CONTROL_BASE}
    mov     r15, rdi
    mov     esi, {CONTROL_SIZE}
    mov     edx, {PROT_READ}
    mov     r10d, {MAP_SHARED_FIXED}
    mov     r8d, {CONTROL_FD}
    xor     r9d, r9d
    mov     eax, {SYS_MMAP}
    syscall
    cmp     rax, r15
    jne     9f
    xor     r14d, r14d
    xor     ebp, ebp
1:
    mov     eax, [r15 + {K_SEQUENCE}]
    cmp     eax, r14d
    jne     2f
    lea     rdi, [r15 + {K_SEQUENCE}]
    mov     esi, {FUTEX_WAIT}
    mov     edx, r14d
    xor     r10d, r10d
    mov     eax, {SYS_FUTEX}
    syscall
    .globl hv_stub_mapping_futex_1
hv_stub_mapping_futex_1:
    jmp     1b
2:
    mov     r14d, eax
    mov     r13d, [r15 + {K_COUNT}]
    lea     r12, [r15 + {K_COMMANDS}]
3:
    sub     r13d, 1
    jc      6f
    mov     rax, [r12]
    mov     rdi, [r12 + 8]
    mov     rsi, [r12 + 16]
    mov     rdx, [r12 + 24]
    mov     r10, [r12 + 32]
    mov     r8,  [r12 + 40]
    mov     r9,  [r12 + 48]
    syscall
    .globl hv_stub_command
hv_stub_command:
    cmp     rax, -4096
    ja      5f
    test    rax, rax
    jnz     4f
    cmp     qword ptr [r12], {SYS_CLONE}
    je      8f
4:
    add     r12, {COMMAND_SIZE}
    jmp     3b
5:                                              // failed: report errno, and how many commands were left
    test    ebp, ebp
    jnz     9f
    neg     eax
    lea     rsi, [rip + hv_stub_numbers]
    lea     rsi, [rsi + rax * 4]
    mov     edx, 4
    mov     r10d, {REPORT_OFFSET} + {R_ERRNO}
    mov     edi, {CONTROL_FD}
    mov     eax, {SYS_PWRITE}
    syscall
    .globl hv_stub_pwrite_1
hv_stub_pwrite_1:
    lea     rsi, [rip + hv_stub_numbers]
    lea     rsi, [rsi + r13 * 4]
    mov     edx, 4
    mov     r10d, {REPORT_OFFSET} + {R_LEFT}
    mov     edi, {CONTROL_FD}
    mov     eax, {SYS_PWRITE}
    syscall
    .globl hv_stub_pwrite_2
hv_stub_pwrite_2:
6:
    test    ebp, ebp
    jnz     hv_stub_vcpu
    mov     edi, {CONTROL_FD}                   // the evidence: the number of the batch that was made, of no later one
    lea     rsi, [rip + hv_stub_numbers]
    lea     rsi, [rsi + r14 * 4]
    mov     edx, 4
    mov     r10d, {REPORT_OFFSET} + {R_DONE}
    mov     eax, {SYS_PWRITE}
    syscall
    .globl hv_stub_pwrite_3
hv_stub_pwrite_3:
    lea     rdi, [r15 + {REPORT_OFFSET} + {R_DONE}]
    mov     esi, {FUTEX_WAKE}
    mov     edx, {WAKE_ALL}
    mov     eax, {SYS_FUTEX}
    syscall
    .globl hv_stub_mapping_futex_2
hv_stub_mapping_futex_2:
    jmp     1b
8:                                              // the child of a clone: a vCPU thread sets itself up
    mov     ebp, 1
    mov     r13d, [r15 + {K_THREAD_COUNT}]
    lea     r12, [r15 + {K_THREAD_COMMANDS}]
    jmp     3b
9:
    ud2

// A vCPU thread, set up and under its filter: reports itself and waits for its first context.
hv_stub_vcpu:
    load_handover
    lea     rax, [rbx - {HANDOVER}]
    wrgsbase rax
    xor     edi, edi
    jmp     hv_stub_publish_trap

    .balign 4
hv_stub_numbers:                                // 0, 1, 2 ..: numbers to report from read-only memory
    .set hv_stub_i, 0
    .rept {NUMBERS}
    .long hv_stub_i
    .set hv_stub_i, hv_stub_i + 1
    .endr
    .globl hv_stub_end
hv_stub_end:
