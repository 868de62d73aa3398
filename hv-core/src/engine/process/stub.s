// The stub: the only trusted code inside a sandbox process.
//
// It is position-independent, is copied into a tiny ELF file and runs at STUB_BASE in PML4 slot 255, where its
// first page is the guest's hypercall page. Three kinds of thread run it:
//
//   mapping thread   hv_stub_start .. : executes the monitor's commands from a read-only page, without a stack
//   vCPU threads     hv_stub_call, _block, _upcall_return, _enter_user: called by the guest kernel, on its stack
//                    hv_stub_trap, hv_stub_kick: signal handlers, on the vCPU's signal stack
//
// Nothing here protects the host: the filters and the absence of mappings do. A guest may jump to any byte of
// it and may overwrite every page that it writes. What it must be is right for an honest guest.
//
// A vCPU's pages, from its area's start: 0 vCPU page (GS base), CLOCK clock page, HANDOVER hand-over page,
// STACK .. AREA signal stack. Inside a signal handler GS is not trusted; the area follows from RSP.
//
// Stopping points: a signal that finds RIP in the stub is resolved by where it is (see hv_stub_kick), so that
// no address of the stub is ever left in a guest context.

    .section .rodata.hv_stub, "a", @progbits
    .balign 4096
    .globl hv_stub_begin
hv_stub_begin:

// ---- the hypercall page -----------------------------------------------------------------------------------
    jmp     hv_stub_call
    .org hv_stub_begin + {ENTRY_BLOCK}
    jmp     hv_stub_block
    .org hv_stub_begin + {ENTRY_UPCALL_RETURN}
    jmp     hv_stub_upcall_return
    .org hv_stub_begin + {ENTRY_ENTER_USER}
    jmp     hv_stub_enter_user
    .org hv_stub_begin + 0x100

// (root, context) -> (rax status, rdx trap). The monitor says which program may be entered without it; that one's
// sandbox has its hand-over page in here, too, and its system calls are taken from there.
hv_stub_enter_user:
    cmp     rdi, gs:[{HANDOVER} + {H_FAST_ROOT}]
    jne     hv_stub_enter_by_monitor
    cmp     rsi, gs:[{HANDOVER} + {H_FAST_CONTEXT}]
    jne     hv_stub_enter_by_monitor
    movabs  r8, {DIRECT_MAP}                    // r8 context
    add     r8, rsi
    cmp     dword ptr [r8 + {C_XSTATE_VALID}], 0
    jne     hv_stub_enter_by_monitor
    mov     rax, gs:[{HANDOVER} + {H_FAST_XSTATE}]
    cmp     rax, [r8 + {C_XSTATE}]
    jne     hv_stub_enter_by_monitor
    mov     rax, [r8 + {C_RIP}]                 // what the monitor would refuse is left to it
    sub     rax, {LOWEST_USER}
    movabs  rcx, {USER_LENGTH}
    cmp     rax, rcx
    jae     hv_stub_enter_by_monitor
    test    qword ptr [r8 + {C_RFLAGS}], {USER_FLAGS}
    jnz     hv_stub_enter_by_monitor
    mov     rax, [r8 + {C_FS_BASE}]
    shl     rax, 16
    sar     rax, 16
    cmp     rax, [r8 + {C_FS_BASE}]
    jne     hv_stub_enter_by_monitor
    xor     eax, eax
    .irp    i, 0, 1, 2, 3, 4, 5, 6, 7, 8
    or      rax, [r8 + {C_RESERVED} + \i * 8]
    .endr
    jnz     hv_stub_enter_by_monitor
    mov     r9, gs:[{HANDOVER} + {H_FAST_LINK}] // r9 the program's hand-over page
    mov     eax, 1
    xchg    gs:[{HANDOVER} + {H_DIRECT}], eax   // a full fence: whoever wants this vCPU looks here after saying so
    test    dword ptr gs:[{V_UPCALL}], {UPCALL_PENDING}
    jnz     9f
    cmp     dword ptr gs:[{HANDOVER} + {H_STOP}], 0
    jne     9f
    mov     gs:[{HANDOVER} + {H_RSP}], rsp
    mov     gs:[{HANDOVER} + {H_RBP}], rbp
    .irp    i, 0, 2, 4, 6, 8, 10, 12, 14, 16
    movups  xmm0, [r8 + \i * 8]
    movups  [r9 + {H_USER} + \i * 8], xmm0
    .endr
    mov     rax, [r8 + {C_FS_BASE}]
    mov     [r9 + {H_FS_BASE}], rax
    or      qword ptr [r9 + {H_USER} + {C_RFLAGS}], {FIXED_FLAGS}
    xor     eax, eax                            // the turn is the program's
    xchg    [r9 + {H_TURN}], eax
    cmp     dword ptr [r9 + {H_CALLER_SLEEPS}], 0
    je      1f
    lea     rdi, [r9 + {H_TURN}]
    mov     esi, {FUTEX_WAKE}
    mov     edx, {WAKE_ALL}
    mov     eax, {SYS_FUTEX}
    syscall
    .globl hv_stub_futex_6
hv_stub_futex_6:
1:                                              // spin
    mov     ecx, gs:[{HANDOVER} + {H_SPIN}]
2:
    mov     eax, [r9 + {H_TURN}]
    test    eax, eax
    jnz     6f
    sub     ecx, 1
    jc      3f
    pause
    test    ecx, {SPIN_LOOK}
    jnz     2b
    mov     r10d, ecx                           // not if the program is on this very processor
    rdtscp
    and     ecx, 0xfff
    mov     gs:[{HANDOVER} + {H_CPU}], ecx
    mov     [r9 + {H_HOST_CPU}], ecx
    cmp     ecx, [r9 + {H_CPU}]
    mov     ecx, r10d
    jne     2b
3:                                              // sleep, as the monitor does
    mov     eax, 1
    xchg    [r9 + {H_HOST_SLEEPS}], eax
    mov     eax, [r9 + {H_TURN}]
    test    eax, eax
    jnz     5f
    mov     qword ptr gs:[{HANDOVER} + {H_TIMEOUT}], 0
    mov     qword ptr gs:[{HANDOVER} + {H_TIMEOUT} + 8], {LOOK_AGAIN_NS}
    rdgsbase r10
    add     r10, {HANDOVER} + {H_TIMEOUT}
    lea     rdi, [r9 + {H_HOST_SLEEPS}]
    mov     esi, {FUTEX_WAIT}
    mov     edx, 1
    mov     eax, {SYS_FUTEX}
    syscall
    .globl hv_stub_futex_7
hv_stub_futex_7:
    jmp     3b
5:
    mov     dword ptr [r9 + {H_HOST_SLEEPS}], 0
6:
    mov     dword ptr gs:[{HANDOVER} + {H_DIRECT}], 0
    cmp     eax, {TURN_SYSCALL}
    jne     7f
    .irp    i, 0, 2, 4, 6, 8, 10, 12, 14, 16
    movups  xmm0, [r9 + {H_USER} + \i * 8]
    movups  [r8 + \i * 8], xmm0
    .endr
    and     qword ptr [r8 + {C_RFLAGS}], {ALL_FLAGS}
    or      qword ptr [r8 + {C_RFLAGS}], {FIXED_FLAGS}
    mov     rax, [r9 + {H_FS_BASE}]
    mov     [r8 + {C_FS_BASE}], rax
    movabs  rax, {USER_SYSCALL_HIGH}
    mov     [r8 + {C_XSTATE_VALID}], rax        // and the trap
    xor     eax, eax
    mov     edx, {USER_SYSCALL}
    jmp     hv_stub_finish
7:                                              // a fault, or its end: the monitor sees to it
    mov     r9d, {TURN_USER_TRAP}
    jmp     hv_stub_publish
9:
    mov     dword ptr gs:[{HANDOVER} + {H_DIRECT}], 0
hv_stub_enter_by_monitor:                       // as a call, with a turn of its own
    mov     gs:[{HANDOVER} + {H_ARGUMENTS}], rdi
    mov     gs:[{HANDOVER} + {H_ARGUMENTS} + 8], rsi
    mov     gs:[{HANDOVER} + {H_RSP}], rsp
    mov     gs:[{HANDOVER} + {H_RBP}], rbp
    mov     r9d, {TURN_ENTER_USER}
    jmp     hv_stub_publish

// (call, a0, a1, a2, a3, a4) -> (rax status, rdx value). Steps are those of handover::Caller.
hv_stub_call:
    mov     gs:[{HANDOVER} + {H_NUMBER}], edi
    mov     gs:[{HANDOVER} + {H_ARGUMENTS}], rsi
    mov     gs:[{HANDOVER} + {H_ARGUMENTS} + 8], rdx
    mov     gs:[{HANDOVER} + {H_ARGUMENTS} + 16], rcx
    mov     gs:[{HANDOVER} + {H_ARGUMENTS} + 24], r8
    mov     gs:[{HANDOVER} + {H_ARGUMENTS} + 32], r9
    mov     gs:[{HANDOVER} + {H_RSP}], rsp
    mov     gs:[{HANDOVER} + {H_RBP}], rbp
hv_stub_publish_call:
    mov     r9d, {TURN_CALL}
hv_stub_publish:                                // publish the turn in r9d
    mov     eax, r9d
    xchg    gs:[{HANDOVER} + {H_TURN}], eax     // a full fence: store before load
    cmp     dword ptr gs:[{HANDOVER} + {H_HOST_SLEEPS}], 0
    jne     6f
3:                                              // spin
    mov     ecx, gs:[{HANDOVER} + {H_SPIN}]
4:
    cmp     gs:[{HANDOVER} + {H_TURN}], r9d
    jne     41f
    sub     ecx, 1
    jc      5f
    pause
    test    ecx, {SPIN_LOOK}
    jnz     4b
    mov     r8d, ecx                            // now and then: if the host's thread is on this very processor,
    rdtscp                                      // spinning only keeps it from answering
    and     ecx, 0xfff
    mov     gs:[{HANDOVER} + {H_CPU}], ecx
    cmp     ecx, gs:[{HANDOVER} + {H_HOST_CPU}]
    mov     ecx, r8d
    jne     4b
    jmp     5f
41:                                             // count the turns spent
    mov     eax, gs:[{HANDOVER} + {H_SPIN}]
    sub     eax, ecx
    add     gs:[{HANDOVER} + {H_SPUN}], rax
    jmp     8f
5:                                              // sleep
    mov     eax, 1
    xchg    gs:[{HANDOVER} + {H_CALLER_SLEEPS}], eax
7:
    cmp     gs:[{HANDOVER} + {H_TURN}], r9d
    jne     71f
    rdgsbase rdi
    add     rdi, {HANDOVER} + {H_TURN}
    mov     esi, {FUTEX_WAIT}
    mov     edx, r9d
    xor     r10d, r10d
    mov     eax, {SYS_FUTEX}
    syscall
    .globl hv_stub_futex_1
hv_stub_futex_1:
    jmp     7b
71:
    mov     dword ptr gs:[{HANDOVER} + {H_CALLER_SLEEPS}], 0
    jmp     8f
6:                                              // wake the host
    mov     dword ptr gs:[{HANDOVER} + {H_HOST_SLEEPS}], 0
    rdgsbase rdi
    add     rdi, {HANDOVER} + {H_HOST_SLEEPS}
    mov     esi, {FUTEX_WAKE}
    mov     edx, {WAKE_ALL}
    mov     eax, {SYS_FUTEX}
    syscall
    .globl hv_stub_futex_2
hv_stub_futex_2:
    jmp     3b
8:                                              // take the answer
    mov     eax, gs:[{HANDOVER} + {H_STATUS}]
    mov     rdx, gs:[{HANDOVER} + {H_VALUE}]
hv_stub_finish:                                 // a signal from here to the end: as if `ret` were done
    cmp     dword ptr gs:[{V_UPCALL}], {UPCALL_PENDING}
    je      hv_stub_enter_upcall
    ret
hv_stub_finish_end:

hv_stub_enter_upcall:                           // pending and not masked: enter it instead of returning
    lock or dword ptr gs:[{V_UPCALL}], {UPCALL_MASKED}
    pop     r11
    mov     r10, rsp
    and     rsp, -16
    push    {USER_SS}
    push    r10
    pushfq
    push    {USER_CS}
    push    r11
    cld
    jmp     qword ptr gs:[{V_UPCALL_ENTRY}]

// (rdi deadline) -> (rax status, rdx why). Sleeps on the vCPU page's `upcall` word: whoever raises an event
// changes it, then looks at `run_state`; here it is the other way round.
hv_stub_block:
    mov     gs:[{HANDOVER} + {H_RSP}], rsp
    mov     gs:[{HANDOVER} + {H_RBP}], rbp
    mov     r8, rdi
    mov     eax, {RUN_BLOCKED}
    xchg    gs:[{V_RUN_STATE}], eax
1:
    mov     r9d, gs:[{V_UPCALL}]
    test    r9d, {UPCALL_PENDING}
    jnz     7f
    cmp     dword ptr gs:[{HANDOVER} + {H_STOP}], 0
    jne     9f
    xor     r10d, r10d                          // no time-out
    cmp     r8, -1
    je      5f
2:                                              // now, under the clock's sequence counter
    mov     esi, gs:[{CLOCK} + {C_SEQUENCE}]
    test    esi, 1
    jnz     2b
    lfence
    rdtsc
    shl     rdx, 32
    or      rax, rdx
    xor     ecx, ecx
    sub     rax, gs:[{CLOCK} + {C_TSC_BASE}]
    cmovb   rax, rcx
    mul     qword ptr gs:[{CLOCK} + {C_SCALE}]
    shrd    rax, rdx, 32
    add     rax, gs:[{CLOCK} + {C_NS_BASE}]
    cmp     esi, gs:[{CLOCK} + {C_SEQUENCE}]
    jne     2b
    mov     rcx, r8
    sub     rcx, rax
    jbe     8f
    mov     rax, rcx
    xor     edx, edx
    mov     ecx, 1000000000
    div     rcx
    mov     gs:[{HANDOVER} + {H_TIMEOUT}], rax
    mov     gs:[{HANDOVER} + {H_TIMEOUT} + 8], rdx
    rdgsbase r10
    add     r10, {HANDOVER} + {H_TIMEOUT}
5:
    rdgsbase rdi
    add     rdi, {V_UPCALL}
    mov     esi, {FUTEX_WAIT}
    mov     edx, r9d
    mov     eax, {SYS_FUTEX}
    syscall
    .globl hv_stub_futex_3
hv_stub_futex_3:
    jmp     1b
7:                                              // an event
    xor     edx, edx
    jmp     81f
8:                                              // the deadline
    mov     edx, {WOKEN_BY_DEADLINE}
81:                                             // a full fence: the store, then the look at hv_stub_finish
    mov     ecx, {RUN_RUNNING}
    xchg    gs:[{V_RUN_STATE}], ecx
    xor     eax, eax
    jmp     hv_stub_finish
9:                                              // the monitor wants to stop us: wait for it as in a call
    mov     dword ptr gs:[{V_RUN_STATE}], {RUN_RUNNING}
    mov     dword ptr gs:[{HANDOVER} + {H_IN_BLOCK}], 1
    jmp     hv_stub_publish_call

// Jumped to with RSP at an UpcallFrame. A signal anywhere in it: as if the iretq were done.
hv_stub_upcall_return:
    mov     qword ptr [rsp + 8], {USER_CS}
    mov     qword ptr [rsp + 32], {USER_SS}
    lock and dword ptr gs:[{V_UPCALL}], {NOT_MASKED}
    test    dword ptr gs:[{V_UPCALL}], {UPCALL_PENDING}
    jnz     1f
    iretq
1:
    lock or dword ptr gs:[{V_UPCALL}], {UPCALL_MASKED}
    cld
    jmp     qword ptr gs:[{V_UPCALL_ENTRY}]
hv_stub_upcall_return_end:

// Called by a user program, through the page at GATE: a system call without a signal. All registers go to the hand-over
// page, and all come from there; H_FRAME is 0 meanwhile, for extended state stays in the processor.
    .globl hv_stub_gate
hv_stub_gate:
    mov     gs:[{HANDOVER} + {H_USER}], rax
    mov     gs:[{HANDOVER} + {H_USER} + 8], rbx
    mov     gs:[{HANDOVER} + {H_USER} + 16], rcx
    mov     gs:[{HANDOVER} + {H_USER} + 24], rdx
    mov     gs:[{HANDOVER} + {H_USER} + 32], rsi
    mov     gs:[{HANDOVER} + {H_USER} + 40], rdi
    mov     gs:[{HANDOVER} + {H_USER} + 48], rbp
    mov     gs:[{HANDOVER} + {H_USER} + 64], r8
    mov     gs:[{HANDOVER} + {H_USER} + 72], r9
    mov     gs:[{HANDOVER} + {H_USER} + 80], r10
    mov     gs:[{HANDOVER} + {H_USER} + 88], r11
    mov     gs:[{HANDOVER} + {H_USER} + 96], r12
    mov     gs:[{HANDOVER} + {H_USER} + 104], r13
    mov     gs:[{HANDOVER} + {H_USER} + 112], r14
    mov     gs:[{HANDOVER} + {H_USER} + 120], r15
    pushfq
    pop     qword ptr gs:[{HANDOVER} + {H_USER} + {C_RFLAGS}]
    cld
    pop     qword ptr gs:[{HANDOVER} + {H_USER} + {C_RIP}]
    mov     gs:[{HANDOVER} + {H_USER} + 56], rsp
    rdfsbase rax
    mov     gs:[{HANDOVER} + {H_FS_BASE}], rax
    mov     qword ptr gs:[{HANDOVER} + {H_FRAME}], 0
    mov     eax, {TURN_SYSCALL}
    xchg    gs:[{HANDOVER} + {H_TURN}], eax
hv_stub_gate_wait:                              // a signal from here to its end: waits on in hv_stub_wait
    cmp     dword ptr gs:[{HANDOVER} + {H_HOST_SLEEPS}], 0
    je      1f
    mov     dword ptr gs:[{HANDOVER} + {H_HOST_SLEEPS}], 0
    rdgsbase rdi
    add     rdi, {HANDOVER} + {H_HOST_SLEEPS}
    mov     esi, {FUTEX_WAKE}
    mov     edx, {WAKE_ALL}
    mov     eax, {SYS_FUTEX}
    syscall
    .globl hv_stub_futex_8
hv_stub_futex_8:
1:
    mov     ecx, gs:[{HANDOVER} + {H_SPIN}]
2:
    cmp     dword ptr gs:[{HANDOVER} + {H_TURN}], {TURN_SYSCALL}
    jne     hv_stub_gate_return
    sub     ecx, 1
    jc      3f
    pause
    test    ecx, {SPIN_LOOK}
    jnz     2b
    mov     r8d, ecx
    rdtscp
    and     ecx, 0xfff
    mov     gs:[{HANDOVER} + {H_CPU}], ecx
    cmp     ecx, gs:[{HANDOVER} + {H_HOST_CPU}]
    mov     ecx, r8d
    jne     2b
3:
    mov     eax, 1
    xchg    gs:[{HANDOVER} + {H_CALLER_SLEEPS}], eax
4:
    cmp     dword ptr gs:[{HANDOVER} + {H_TURN}], {TURN_SYSCALL}
    jne     5f
    rdgsbase rdi
    add     rdi, {HANDOVER} + {H_TURN}
    mov     esi, {FUTEX_WAIT}
    mov     edx, {TURN_SYSCALL}
    xor     r10d, r10d
    mov     eax, {SYS_FUTEX}
    syscall
    .globl hv_stub_futex_9
hv_stub_futex_9:
    jmp     4b
5:
    mov     dword ptr gs:[{HANDOVER} + {H_CALLER_SLEEPS}], 0
hv_stub_gate_return:                            // a signal from here to its end: as if it were done
    cmp     qword ptr gs:[{HANDOVER} + {H_FRAME}], 0
    jne     7f                                  // it goes on as another
    cmp     dword ptr gs:[{HANDOVER} + {H_STOP}], 0
    jne     7f
    test    dword ptr gs:[{HANDOVER} + {H_USER} + {C_RFLAGS}], {FLAG_TF} | {FLAG_AC}
    jnz     7f
    mov     rax, gs:[{HANDOVER} + {H_FS_BASE}]
    wrfsbase rax
    rdgsbase rsp
    add     rsp, {HANDOVER} + {H_USER} + {C_RFLAGS}
    popfq
    mov     rax, gs:[{HANDOVER} + {H_USER}]
    mov     rbx, gs:[{HANDOVER} + {H_USER} + 8]
    mov     rcx, gs:[{HANDOVER} + {H_USER} + 16]
    mov     rdx, gs:[{HANDOVER} + {H_USER} + 24]
    mov     rsi, gs:[{HANDOVER} + {H_USER} + 32]
    mov     rdi, gs:[{HANDOVER} + {H_USER} + 40]
    mov     rbp, gs:[{HANDOVER} + {H_USER} + 48]
    mov     rsp, gs:[{HANDOVER} + {H_USER} + 56]
    mov     r8,  gs:[{HANDOVER} + {H_USER} + 64]
    mov     r9,  gs:[{HANDOVER} + {H_USER} + 72]
    mov     r10, gs:[{HANDOVER} + {H_USER} + 80]
    mov     r11, gs:[{HANDOVER} + {H_USER} + 88]
    mov     r12, gs:[{HANDOVER} + {H_USER} + 96]
    mov     r13, gs:[{HANDOVER} + {H_USER} + 104]
    mov     r14, gs:[{HANDOVER} + {H_USER} + 112]
    mov     r15, gs:[{HANDOVER} + {H_USER} + 120]
    jmp     qword ptr gs:[{HANDOVER} + {H_USER} + {C_RIP}]
7:                                              // as another, whose context is there, or by a signal's
    cmp     qword ptr gs:[{HANDOVER} + {H_FRAME}], 0
    je      hv_stub_gate_trap
    rdgsbase rsp
    add     rsp, {STACK} + {STACK_SIZE} - 256
    jmp     hv_stub_resume
hv_stub_gate_trap:
    ud2
hv_stub_gate_end:

// ---- signal handlers: rdi signal, rsi siginfo, rdx ucontext; RSP on the vCPU's signal stack ------------------

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
    .irp    pair, "0, 104", "1, 88", "2, 112", "3, 96", "4, 72", "5, 64", "6, 80", "7, 120", "8, 0", "9, 8", "10, 16", "11, 24", "12, 32", "13, 40", "14, 48", "15, 56", "16, 128", "17, 136"
    \copy  \pair
    .endr
.endm
.macro to_handover word, register
    mov     rax, [rdx + {UC_R8} + \register]
    mov     [rbx + {H_USER} + \word * 8], rax
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
    mov     [rbx + {H_FS_BASE}], rax
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
    cmp     [rdx + {UC_RIP}], rax
    jb      hv_stub_publish_user
hv_stub_publish_trap:
    mov     r12d, {TURN_TRAP}
hv_stub_publish_user:                           // publish the turn in r12d
    mov     [rbx + {H_SIGNAL}], edi
    mov     eax, r12d
    xchg    [rbx + {H_TURN}], eax
    cmp     dword ptr [rbx + {H_HOST_SLEEPS}], 0
    je      2f
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
    cmp     dword ptr [rbx + {H_STOP}], 0
    jne     hv_stub_stop
    cmp     dword ptr [rbx - {HANDOVER} + {V_UPCALL}], {UPCALL_PENDING}
    je      hv_stub_deliver
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
    jmp     hv_stub_resume

// Jumps to `target` if rax is below `label`.
.macro if_rip_below label, target
    lea     rcx, [rip + \label]
    cmp     rax, rcx
    jb      \target
.endm

// The monitor's signal: there is an upcall to make, or the vCPU is to stop. By where it finds RIP:
//   guest code                     act on it
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
    mov     [rbx + {H_FS_BASE}], rax
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

// ---- the mapping thread ------------------------------------------------------------------------------------

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
    mov     edi, {CONTROL_FD}                   // the evidence: only this page's sequence number counts
    lea     rsi, [r15 + {K_SEQUENCE}]
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
    .rept 256
    .long hv_stub_i
    .set hv_stub_i, hv_stub_i + 1
    .endr
    .globl hv_stub_end
hv_stub_end:
