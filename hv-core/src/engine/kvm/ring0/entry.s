// The hypercall page in ring 0: called by the guest kernel, on its stack, of which nothing below 192 bytes is used.
//
// Each entry begins by switching interrupts off and ends with `sti` before its `ret`, which no interrupt comes between. So the
// monitor's interrupt finds the guest kernel in its own code, or at the first instruction of an entry, where it changes nothing:
// what is pending is looked at before an entry ends (hv_finish). GS base is the vCPU's page, and its area from there.

    .section .text.hv_entries, "ax", @progbits
    .globl hv_ring0
hv_ring0:
    cli
    jmp     hv_call
    .org hv_ring0 + 0x40
    cli
    jmp     hv_block
    .org hv_ring0 + 0x80
    cli
    jmp     hv_upcall_return
    .org hv_ring0 + 0xc0
    cli
    jmp     hv_enter_user

    .org hv_ring0 + 0x100                       // layout::Header
    .quad   hv_syscall, hv_syscall_end, hv_vectors, hv_upcall, hv_upcall_end, hv_gate, hv_probe, hv_gate_page

// (call, a0, a1, a2, a3, a4) -> (rax status, rdx value).
hv_call:
    cmp     edi, {CALL_MMU_UPDATE}
    je      1f
    cmp     edi, {CALL_MMU_FLUSH}
    je      2f
hv_call_monitor:
    mov     gs:[{E_NUMBER}], edi
    mov     gs:[{E_ARGUMENTS}], rsi
    mov     gs:[{E_ARGUMENTS} + 8], rdx
    mov     gs:[{E_ARGUMENTS} + 16], rcx
    mov     gs:[{E_ARGUMENTS} + 24], r8
    mov     gs:[{E_ARGUMENTS} + 32], r9
    mov     gs:[{E_RSP}], rsp
    mov     gs:[{E_RBP}], rbp
    mov     edx, {PORT_CALL}
    out     dx, eax
    mov     eax, gs:[{E_STATUS}]
    mov     rdx, gs:[{E_VALUE}]
    jmp     hv_finish
1:                                              // page tables: here, if nobody needs to know of it
    lea     r10, [rip + {update}]
    jmp     3f
2:
    lea     r10, [rip + {flush}]
3:
    movabs  r11, {SHARED}
    cmp     dword ptr [r11 + {SHARED_ASK}], 0
    jne     hv_call_monitor
    mov     r11, r8
    or      r11, r9
    jnz     hv_call_monitor
    mov     gs:[{E_RSP}], rsp
    mov     rsp, gs:[{E_STACK_END}]
    push    rdi
    push    rsi
    push    rdx
    push    rcx
    mov     rdi, rsi
    mov     rsi, rdx
    mov     rdx, rcx
    call    r10
    pop     rcx
    pop     rdx
    pop     rsi
    pop     rdi
    mov     rsp, gs:[{E_RSP}]
    xor     r8d, r8d
    xor     r9d, r9d
    test    eax, eax
    jnz     hv_call_monitor
    cmp     edi, {CALL_MMU_UPDATE}
    je      hv_finish                           // the value is the count, and there
    xor     edx, edx

// The end of every entry but hv_upcall_return: RSP as the guest kernel called it, RAX and RDX the answer.
hv_finish:
    mov     r11d, gs:[{E_FLUSH_WANTED}]
    cmp     r11d, gs:[{E_FLUSH_DONE}]
    jne     2f
1:
    cmp     dword ptr gs:[{V_UPCALL}], {PENDING}
    je      hv_enter_upcall
    sti
    ret
2:
    mov     r10, cr3
    mov     cr3, r10
    mov     gs:[{E_FLUSH_DONE}], r11d
    jmp     1b

hv_enter_upcall:                                // pending and not masked: enter it instead of returning
    lock or dword ptr gs:[{V_UPCALL}], {MASKED}
    pop     r11
    mov     r10, rsp
    and     rsp, -16
    push    {KERNEL_DATA}
    push    r10
    pushfq
    or      qword ptr [rsp], {FIXED_FLAGS}
    push    {KERNEL_CODE}
    push    r11
    cld
    mov     r11, gs:[{V_UPCALL_ENTRY}]
    sti
    jmp     r11

// (rdi deadline) -> (rax status, rdx why).
hv_block:
    mov     eax, {BLOCKED}
    xchg    gs:[{V_RUN_STATE}], eax
    xor     r9d, r9d
    test    dword ptr gs:[{V_UPCALL}], {PENDING}
    jnz     1f
    mov     gs:[{E_ARGUMENTS}], rdi
    mov     gs:[{E_RSP}], rsp
    mov     gs:[{E_RBP}], rbp
    mov     edx, {PORT_BLOCK}
    out     dx, eax
    mov     r9, gs:[{E_VALUE}]
1:
    mov     ecx, {RUNNING}
    xchg    gs:[{V_RUN_STATE}], ecx
    xor     eax, eax
    mov     rdx, r9
    jmp     hv_finish

// Jumped to with RSP at an UpcallFrame. All registers are the interrupted code's.
hv_upcall_return:
    mov     qword ptr [rsp + 8], {KERNEL_CODE}
    mov     qword ptr [rsp + 32], {KERNEL_DATA}
    and     qword ptr [rsp + 16], {USER_FLAGS}
    or      qword ptr [rsp + 16], {FIXED_FLAGS}
    lock and dword ptr gs:[{V_UPCALL}], {NOT_MASKED}
    test    dword ptr gs:[{V_UPCALL}], {PENDING}
    jnz     1f
    iretq
1:
    lock or dword ptr gs:[{V_UPCALL}], {MASKED}
    cld
    sti
    jmp     qword ptr gs:[{V_UPCALL_ENTRY}]

// (root, context) -> (rax status, rdx trap).
hv_enter_user:
    mov     gs:[{E_KEPT}], rbx
    mov     gs:[{E_KEPT} + 8], rbp
    mov     gs:[{E_KEPT} + 16], rsp
    mov     gs:[{E_KEPT} + 24], r12
    mov     gs:[{E_KEPT} + 32], r13
    mov     gs:[{E_KEPT} + 40], r14
    mov     gs:[{E_KEPT} + 48], r15
    rdfsbase rax
    mov     gs:[{E_KEPT} + 56], rax
    stmxcsr gs:[{E_MXCSR}]
    fnstcw  gs:[{E_CONTROL}]
    mov     rsp, gs:[{E_STACK_END}]
    mov     r12, rdi
    mov     r13, rsi
    xor     edx, edx
1:
    mov     rdi, r12
    mov     rsi, r13
    call    {prepare}
    cmp     eax, 1
    jb      3f
    ja      hv_interrupted_before
    mov     gs:[{E_ARGUMENTS}], r12             // ask: the monitor gives a status, or has it done
    mov     gs:[{E_ARGUMENTS} + 8], r13
    mov     rax, gs:[{E_KEPT} + 16]
    mov     gs:[{E_RSP}], rax
    mov     gs:[{E_RBP}], rbp
    mov     edx, {PORT_ENTER}
    out     dx, eax
    mov     edx, 1
    cmp     dword ptr gs:[{E_STATUS}], {ENTER}
    je      1b
    mov     eax, gs:[{E_STATUS}]
    mov     rdx, gs:[{E_VALUE}]
hv_leave_user:                                  // RAX and RDX the answer
    mov     rbx, gs:[{E_KEPT}]
    mov     rbp, gs:[{E_KEPT} + 8]
    mov     rsp, gs:[{E_KEPT} + 16]
    mov     r12, gs:[{E_KEPT} + 24]
    mov     r13, gs:[{E_KEPT} + 32]
    mov     r14, gs:[{E_KEPT} + 40]
    mov     r15, gs:[{E_KEPT} + 48]
    jmp     hv_finish
hv_interrupted_before:                          // an event was pending: as if it had come at once
    mov     rcx, gs:[{E_CONTEXT}]
    mov     edx, {TRAP_INTERRUPTED}
    mov     [rcx + {C_TRAP}], edx
    xor     eax, eax
    jmp     hv_leave_user
3:                                              // its extended state, then its registers
    mov     r12, gs:[{E_CONTEXT}]
    mov     rcx, gs:[{E_XSTATE}]
    mov     eax, gs:[{E_XSTATE_MASK}]
    mov     edx, gs:[{E_XSTATE_MASK} + 4]
    .globl hv_xrstor
hv_xrstor:
    xrstor64 [rcx]
    mov     rax, [r12 + {C_FS_BASE}]
    wrfsbase rax
    mov     r11, [r12 + {C_RFLAGS}]             // checked, and not to be trusted all the same
    and     r11, {USER_FLAGS}
    or      r11, {FIXED_FLAGS}
    mov     rcx, [r12 + {C_RIP}]
    mov     rax, rcx
    shr     rax, 47                             // a RIP of the upper half must not come to SYSRET
    jnz     hv_xrstor_failed
    cmp     r11, [r12 + {C_R8} + 24]            // SYSRET has the flags in R11 and RIP in RCX: after a system call they are there
    jne     5f
    cmp     rcx, [r12 + {C_RCX}]
    jne     5f
    test    r11d, {TF}
    jnz     5f
    .macro load_program
    mov     rbx, [r12 + {C_RBX}]
    mov     rdx, [r12 + {C_RDX}]
    mov     rsi, [r12 + {C_RSI}]
    mov     rdi, [r12 + {C_RDI}]
    mov     rbp, [r12 + {C_RBP}]
    mov     r8,  [r12 + {C_R8}]
    mov     r9,  [r12 + {C_R8} + 8]
    mov     r10, [r12 + {C_R8} + 16]
    mov     r13, [r12 + {C_R8} + 40]
    mov     r14, [r12 + {C_R8} + 48]
    mov     r15, [r12 + {C_R8} + 56]
    .endm
    load_program
    mov     rax, [r12 + {C_RAX}]
    mov     gs:[{E_SCRATCH}], rax
    mov     rsp, [r12 + {C_RSP}]
    mov     r12, [r12 + {C_R8} + 32]
    mov     rax, gs:[{E_USER_CR3}]
    mov     cr3, rax
    mov     rax, gs:[{E_SCRATCH}]
    swapgs
    sysretq
5:
    push    {USER_DATA}
    push    qword ptr [r12 + {C_RSP}]
    push    r11
    push    {USER_CODE}
    push    rcx
    load_program
    mov     rcx, [r12 + {C_RCX}]
    mov     r11, [r12 + {C_R8} + 24]
    mov     rax, [r12 + {C_RAX}]
    mov     gs:[{E_SCRATCH}], rax
    mov     r12, [r12 + {C_R8} + 32]
    mov     rax, gs:[{E_USER_CR3}]
    mov     cr3, rax
    mov     rax, gs:[{E_SCRATCH}]
    swapgs
    iretq
    .globl hv_xrstor_failed
hv_xrstor_failed:                               // what was checked has changed meanwhile
    mov     qword ptr gs:[{E_USER_ROOT}], 0
    fninit
    fldcw   gs:[{E_CONTROL}]
    ldmxcsr gs:[{E_MXCSR}]
    mov     rax, gs:[{E_KEPT} + 56]
    wrfsbase rax
    mov     eax, {BAD_ARGUMENT}
    xor     edx, edx
    jmp     hv_leave_user

// Counts RDI down and leaves, so often as RSI says: what the monitor times.
hv_probe:
    mov     rcx, rdi
1:
    dec     rcx
    jnz     1b
    mov     edx, {PORT_PROBE}
2:
    out     dx, eax
    dec     rsi
    jnz     2b
    ud2
