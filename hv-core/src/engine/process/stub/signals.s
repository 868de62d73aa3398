// Signal handlers: rdi signal, rsi siginfo, rdx ucontext; RSP on the vCPU's signal stack.

// Loads rbx with the address of the hand-over page, from RSP alone.
.macro load_handover
    mov     rbx, rsp
    and     rbx, -{STACK_SIZE}
    sub     rbx, {STACK} - {HANDOVER}
.endm

// Returns to the context at rbx without rt_sigreturn: extended state, registers, iretq. RSP is below the context.
.macro restore
    mov     rcx, [rbx + {UC_FPSTATE}]
    mov     eax, -1
    mov     edx, -1
    xrstor64 [rcx]
    push    {USER_SS}
    push    [rbx + {UC_RSP}]
    push    [rbx + {UC_EFLAGS}]
    push    {USER_CS}
    push    [rbx + {UC_RIP}]
    mov     r8,  [rbx + {UC_R8}]
    mov     r9,  [rbx + {UC_R8} + 8]
    mov     r10, [rbx + {UC_R8} + 16]
    mov     r11, [rbx + {UC_R8} + 24]
    mov     r12, [rbx + {UC_R8} + 32]
    mov     r13, [rbx + {UC_R8} + 40]
    mov     r14, [rbx + {UC_R8} + 48]
    mov     r15, [rbx + {UC_R8} + 56]
    mov     rdi, [rbx + {UC_R8} + 64]
    mov     rsi, [rbx + {UC_R8} + 72]
    mov     rbp, [rbx + {UC_R8} + 80]
    mov     rdx, [rbx + {UC_R8} + 96]
    mov     rax, [rbx + {UC_R8} + 104]
    mov     rcx, [rbx + {UC_R8} + 112]
    mov     rbx, [rbx + {UC_R8} + 88]
    iretq
.endm

// Copies the registers of the context at rdx into a program's hand-over page at rbx, or back. Loses rax.
.macro user_words copy
    .irp    pair, "7, 112", "8, 80", "9, 120", "10, 0", "11, 8", "12, 16", "13, 24", "14, 32", "15, 40", "16, 48", "17, 56", "0, 104", "1, 88", "2, 96", "3, 72", "4, 64", "5, 128", "6, 136"
    \copy  \pair
    .endr
.endm
.macro to_handover word, register
    mov     rax, [rdx + {UC_R8} + \register]
    store_changed rax, "[rbx + {H_USER} + \word * 8]"
.endm
.macro to_context word, register
    mov     rax, [rbx + {H_USER} + \word * 8]
    mov     [rdx + {UC_R8} + \register], rax
.endm
.macro save_user
    user_words to_handover
.endm
.macro load_user
    user_words to_context
.endm

// SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS. Publishes the context and waits for the answer.
    .globl hv_stub_trap
hv_stub_trap:
    push    2                                   // clears AC, NT and DF, before anything that they could break
    popfq
    load_handover
    lea     rax, [rip + hv_stub_gate_trap]
    cmp     rax, [rdx + {UC_RIP}]
    je      hv_stub_from_gate
    mov     [rbx + {H_FRAME}], rdx
    mov     [rbx + {H_SIGINFO}], rsi
    rdfsbase rax
    store_changed rax, "[rbx + {H_FS_BASE}]"
    cmp     dword ptr [rbx + {H_IS_USER}], 0
    je      hv_stub_publish_trap
    save_user
    mov     r12d, {TURN_SYSCALL}                // a system call, if all of it is as it should be
    cmp     edi, {SIGSYS}
    jne     hv_stub_publish_trap
    cmp     dword ptr [rsi + 28], {ARCH}
    jne     hv_stub_publish_trap
    cmp     word ptr [rdx + {UC_SELECTORS}], {USER_CS}
    jne     hv_stub_publish_trap
    movabs  rax, {SLOT_255}
    cmp     [rsi + 16], rax                     // not from the host's vsyscall page, nor from here
    jae     hv_stub_publish_trap
    mov     rcx, [rdx + {UC_RIP}]
    cmp     rcx, rax
    jae     hv_stub_publish_trap
    cmp     rcx, {LOWEST_USER}                  // nor from the jump table
    jb      hv_stub_publish_trap
    and     ecx, {TRAPS_MASK}                   // one that traps often is for the monitor to look at
    movzx   eax, byte ptr [rbx + rcx + {H_TRAPS}]
    inc     eax
    mov     [rbx + rcx + {H_TRAPS}], al
    cmp     eax, [rbx + {H_LOOK_AFTER}]
    jne     hv_stub_publish_user
hv_stub_publish_trap:
    mov     r12d, {TURN_TRAP}
hv_stub_publish_user:                           // publish the turn in r12d
    mov     [rbx + {H_SIGNAL}], edi
    mov     [rbx + {H_TURN}], r12d
    fence   "[rbx + {H_RSP}]"
    cmp     dword ptr [rbx + {H_HOST_SLEEPS}], 0
    je      2f
    rdtscp
    and     ecx, 0xfff
    mov     [rbx + {H_CPU}], ecx
    mov     dword ptr [rbx + {H_HOST_SLEEPS}], 0
    lea     rdi, [rbx + {H_HOST_SLEEPS}]
    mov     esi, {FUTEX_WAKE}
    mov     edx, {WAKE_ALL}
    mov     eax, {SYS_FUTEX}
    syscall
    .globl hv_stub_futex_4
hv_stub_futex_4:
2:
hv_stub_wait:
    mov     ecx, [rbx + {H_SPIN}]
3:
    cmp     [rbx + {H_TURN}], r12d
    jne     hv_stub_resume
    sub     ecx, 1
    jc      4f
    pause
    test    ecx, {SPIN_LOOK}
    jnz     3b
    mov     r8d, ecx
    rdtscp
    and     ecx, 0xfff
    mov     [rbx + {H_CPU}], ecx
    cmp     ecx, [rbx + {H_HOST_CPU}]
    mov     ecx, r8d
    jne     3b
4:
    mov     eax, 1
    xchg    [rbx + {H_CALLER_SLEEPS}], eax
5:
    cmp     [rbx + {H_TURN}], r12d
    jne     6f
    lea     rdi, [rbx + {H_TURN}]
    mov     esi, {FUTEX_WAIT}
    mov     edx, r12d
    xor     r10d, r10d
    mov     eax, {SYS_FUTEX}
    syscall
    .globl hv_stub_futex_5
hv_stub_futex_5:
    jmp     5b
6:
    mov     dword ptr [rbx + {H_CALLER_SLEEPS}], 0

// Goes on with the context at H_FRAME. A signal from here to the iretq starts it again, so that no request is
// missed between the look and the return.
hv_stub_resume:
    load_handover
    mov     rdx, [rbx + {H_FRAME}]
    lea     rsp, [rdx - 128]
    cmp     dword ptr [rbx + {H_IS_USER}], 0
    jne     1f
    movabs  rax, {SLOT_255}                     // in the stub, which found a stack of the guest kernel's missing, and
    cmp     [rdx + {UC_RIP}], rax               // now has it: looks for both later
    jae     2f
1:
    cmp     dword ptr [rbx + {H_STOP}], 0
    jne     hv_stub_stop
    cmp     dword ptr [rbx - {HANDOVER} + {V_UPCALL}], {UPCALL_PENDING}
    je      hv_stub_deliver
2:
    mov     rax, [rbx + {H_FS_BASE}]
    wrfsbase rax
    cmp     dword ptr [rbx + {H_IS_USER}], 0
    je      1f
    load_user
1:
    mov     rbx, rdx
    restore
hv_stub_resume_end:

hv_stub_stop:
    xor     edi, edi
    jmp     hv_stub_publish_trap

// Makes the context at rdx one that enters the guest's upcall entry.
hv_stub_deliver:
    mov     rcx, [rdx + {UC_RSP}]
    sub     rcx, 128
    and     rcx, -16
    sub     rcx, 40
    mov     rax, [rdx + {UC_RIP}]
    mov     [rcx], rax
    mov     qword ptr [rcx + 8], {USER_CS}
    mov     rax, [rdx + {UC_EFLAGS}]
    mov     [rcx + 16], rax
    mov     rax, [rdx + {UC_RSP}]
    mov     [rcx + 24], rax
    mov     qword ptr [rcx + 32], {USER_SS}
    mov     [rdx + {UC_RSP}], rcx
    mov     rax, [rbx - {HANDOVER} + {V_UPCALL_ENTRY}]
    mov     [rdx + {UC_RIP}], rax
    mov     qword ptr [rdx + {UC_EFLAGS}], 0x202
    lock or dword ptr [rbx - {HANDOVER} + {V_UPCALL}], {UPCALL_MASKED}
    mov     [rbx + {H_FRAME}], rdx              // a store above may have faulted, and left its own
    jmp     hv_stub_resume

// Jumps to `target` if rax is below `label`.
.macro if_rip_below label, target
    lea     rcx, [rip + \label]
    cmp     rax, rcx
    jb      \target
.endm

// The monitor's signal: there is an upcall to make, or the vCPU is to stop. By where it finds RIP:
//   guest code                     act on it
//   gate or jump table             go on: from there a program comes to hv_stub_gate_wait
//   end of a call or upcall_return roll the context forward to its return, then the same
//   hv_stub_resume                 start that again; it looks for both
//   hv_stub_gate_wait, _return     go on from here, where there is a context with the extended state
//   elsewhere in the stub          go on: what is interrupted there looks for upcalls before it returns; a stop
//                                  may have to be asked for again, which the monitor does
    .globl hv_stub_kick
hv_stub_kick:
    push    2
    popfq
    load_handover
    mov     rax, [rdx + {UC_RIP}]
    cmp     rax, {LOWEST_USER}
    jae     5f
    cmp     dword ptr [rbx + {H_IS_USER}], 0   // they are there in user address spaces only
    jne     9f
5:
    if_rip_below hv_stub_begin, 1f
    if_rip_below hv_stub_finish, 9f
    if_rip_below hv_stub_finish_end, 3f
    if_rip_below hv_stub_upcall_return, 9f
    if_rip_below hv_stub_upcall_return_end, 2f
    if_rip_below hv_stub_gate_wait, 9f
    if_rip_below hv_stub_gate_return, 4f
    if_rip_below hv_stub_gate_end, hv_stub_from_gate
    if_rip_below hv_stub_resume, 9f
    if_rip_below hv_stub_resume_end, hv_stub_resume
    if_rip_below hv_stub_end, 9f
    jmp     1f
3:
    mov     rcx, [rdx + {UC_RSP}]               // roll `ret` forward
    mov     rax, [rcx]
    mov     [rdx + {UC_RIP}], rax
    add     rcx, 8
    mov     [rdx + {UC_RSP}], rcx
1:
    mov     [rbx + {H_FRAME}], rdx
    rdfsbase rax
    store_changed rax, "[rbx + {H_FS_BASE}]"
    cmp     dword ptr [rbx + {H_IS_USER}], 0
    je      hv_stub_resume
    save_user
    jmp     hv_stub_resume
2:                                              // roll `iretq` forward
    lock and dword ptr [rbx - {HANDOVER} + {V_UPCALL}], {NOT_MASKED}
    mov     rcx, [rdx + {UC_RSP}]
    mov     rax, [rcx]
    mov     [rdx + {UC_RIP}], rax
    mov     rax, [rcx + 16]
    mov     [rdx + {UC_EFLAGS}], rax
    mov     rax, [rcx + 24]
    mov     [rdx + {UC_RSP}], rax
    jmp     1b
4:                                              // waiting at the gate: waits on in here, with a context
    xor     eax, eax
    lock cmpxchg [rbx + {H_FRAME}], rdx
    mov     dword ptr [rbx + {H_CALLER_SLEEPS}], 0
    mov     r12d, {TURN_SYSCALL}
    jmp     hv_stub_wait
hv_stub_from_gate:                              // going on from the gate: goes on from here
    xor     eax, eax
    lock cmpxchg [rbx + {H_FRAME}], rdx
    jmp     hv_stub_resume
9:
    mov     rbx, rdx
    restore
