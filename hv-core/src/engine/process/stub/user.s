// User mode: the guest kernel's side, which enters a program, and a program's side of the gate.
//
// They meet at the program's hand-over page, which both sandboxes have. Either may find the other asleep, or its own
// processor taken by it; the steps are those of handover.rs, with the guest kernel in the monitor's place.

// Stores a register unless that is there already: a line of the processor's cache that nobody writes need not move.
.macro store_changed register, word
    cmp     \word, \register
    je      88f
    mov     \word, \register
88:
.endm

// Copies words between a UserContext at r8 and a program's hand-over page at r9, where they are in another order
// (handover::ORDER). Loses rax.
.macro to_program word, register
    mov     rax, [r8 + \register * 8]
    store_changed rax, "[r9 + {H_USER} + \word * 8]"
.endm
.macro to_program_always word, register
    mov     rax, [r8 + \register * 8]
    mov     [r9 + {H_USER} + \word * 8], rax
.endm
.macro from_program word, register
    mov     rax, [r9 + {H_USER} + \word * 8]
    mov     [r8 + \register * 8], rax
.endm

// (root, context) -> (rax status, rdx trap). The monitor says which programs may be entered without it; their sandboxes'
// hand-over pages are in here, too, and their system calls are taken from there.
hv_stub_enter_user:
    mov     ecx, edi                            // rcx and r11 its place
    shr     ecx, 12
    and     ecx, {ENTERABLE_MASK}
    shl     ecx, {ENTERABLE_SHIFT}
    mov     r11d, ecx
    cmp     rdi, gs:[rcx + {HANDOVER} + {H_ENTERABLE} + {E_ROOT}]
    jne     hv_stub_enter_by_monitor
    cmp     rsi, gs:[rcx + {HANDOVER} + {H_ENTERABLE} + {E_CONTEXT}]
    jne     hv_stub_enter_by_monitor
    cmp     dword ptr gs:[{HANDOVER} + {H_TOGETHER_LEFT}], 0
    jle     hv_stub_enter_by_monitor            // which parts the two
    movabs  r8, {DIRECT_MAP}                    // r8 context
    add     r8, rsi
    cmp     dword ptr [r8 + {C_XSTATE_VALID}], 0
    jne     hv_stub_enter_by_monitor
    mov     rax, gs:[rcx + {HANDOVER} + {H_ENTERABLE} + {E_XSTATE}]
    cmp     rax, [r8 + {C_XSTATE}]
    jne     hv_stub_enter_by_monitor
    mov     r9, gs:[rcx + {HANDOVER} + {H_ENTERABLE} + {E_LINK}] // r9 the program's hand-over page
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
    mov     gs:[{HANDOVER} + {H_DIRECT_ROOT}], rdi
    mov     eax, 1
    xchg    gs:[{HANDOVER} + {H_DIRECT}], eax   // a full fence: whoever wants this vCPU looks here after saying so
    test    dword ptr gs:[{V_UPCALL}], {UPCALL_PENDING}
    jnz     9f
    cmp     dword ptr gs:[{HANDOVER} + {H_STOP}], 0
    jne     9f
    cmp     rsi, gs:[r11 + {HANDOVER} + {H_ENTERABLE} + {E_CONTEXT}]
    jne     9f                                  // forbidden meanwhile
    mov     gs:[{HANDOVER} + {H_RSP}], rsp
    mov     gs:[{HANDOVER} + {H_RBP}], rbp
    .irp    pair, "7, 2", "8, 6", "9, 7", "10, 8", "11, 9", "12, 10", "13, 11", "14, 12", "15, 13", "16, 14", "17, 15", "18, 18"
    to_program \pair
    .endr
    mov     rcx, [r8 + {C_RFLAGS}]              // those beside the turn last: the program looks there all the time
    or      rcx, {FIXED_FLAGS}
    mov     rdx, [r8 + {C_RIP}]
    .irp    pair, "0, 0", "1, 1", "2, 3", "3, 4", "4, 5"
    to_program_always \pair
    .endr
    mov     [r9 + {H_USER} + 40], rdx
    mov     [r9 + {H_USER} + 48], rcx
    mov     dword ptr [r9 + {H_TURN}], 0        // the turn is the program's
    fence   "gs:[{HANDOVER} + {H_RSP}]"
    cmp     dword ptr [r9 + {H_IS_DEAD}], 0     // unless it is dead, which is said once: this before the turn
    jne     4f
    cmp     dword ptr [r9 + {H_CALLER_SLEEPS}], 0
    je      1f
    rdtscp                                      // where each is, for who looks; one that wakes quickly never spins
    and     ecx, 0xfff
    mov     gs:[{HANDOVER} + {H_CPU}], ecx
    store_changed ecx, "[r9 + {H_HOST_CPU}]"
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
    store_changed ecx, "[r9 + {H_HOST_CPU}]"
    cmp     ecx, [r9 + {H_CPU}]
    mov     ecx, r10d
    jne     2b
    dec     dword ptr gs:[{HANDOVER} + {H_TOGETHER_LEFT}]
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
4:
    mov     eax, {TURN_DEAD}
    mov     [r9 + {H_TURN}], eax
5:
    mov     dword ptr [r9 + {H_HOST_SLEEPS}], 0
6:
    cmp     eax, {TURN_SYSCALL}
    jne     7f
    .irp    pair, "0, 0", "1, 1", "2, 3", "3, 4", "4, 5", "5, 16", "7, 2", "8, 6", "9, 7", "10, 8", "11, 9", "12, 10", "13, 11", "14, 12", "15, 13", "16, 14", "17, 15", "18, 18"
    from_program \pair
    .endr
    mov     rax, [r9 + {H_USER} + 48]
    and     rax, {ALL_FLAGS}
    or      rax, {FIXED_FLAGS}
    mov     [r8 + {C_RFLAGS}], rax
    movabs  rax, {USER_SYSCALL_HIGH}
    mov     [r8 + {C_XSTATE_VALID}], rax        // and the trap
    mov     dword ptr gs:[{HANDOVER} + {H_DIRECT}], 0 // only now may its address space be given up, which writes there, too
    xor     eax, eax
    mov     edx, {USER_SYSCALL}
    jmp     hv_stub_finish
7:                                              // a fault, or its end: the monitor sees to it, and says that it is out
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

// Stores the registers that are not beside the turn, but RSP and FS base.
.macro store_others
    store_changed rcx, "gs:[{HANDOVER} + {H_USER} + 56]"
    store_changed rbp, "gs:[{HANDOVER} + {H_USER} + 64]"
    store_changed r8, "gs:[{HANDOVER} + {H_USER} + 80]"
    store_changed r9, "gs:[{HANDOVER} + {H_USER} + 88]"
    store_changed r10, "gs:[{HANDOVER} + {H_USER} + 96]"
    store_changed r11, "gs:[{HANDOVER} + {H_USER} + 104]"
    store_changed r12, "gs:[{HANDOVER} + {H_USER} + 112]"
    store_changed r13, "gs:[{HANDOVER} + {H_USER} + 120]"
    store_changed r14, "gs:[{HANDOVER} + {H_USER} + 128]"
    store_changed r15, "gs:[{HANDOVER} + {H_USER} + 136]"
.endm

// Jumped to by the trampoline of a rewritten system call, with the number in EAX, RIP behind the `syscall` in RCX, and R11
// free. As the gate, but the program's stack is not touched: what is below RSP is the program's.
    .globl hv_stub_rewritten
hv_stub_rewritten:
    mov     r11, rsp
    rdgsbase rsp
    lea     rsp, [rsp + {HANDOVER} + {H_RSP} + 8]
    pushfq
    mov     rsp, r11
    mov     r11, gs:[{HANDOVER} + {H_RSP}]      // flags, as `syscall` leaves them
    cld
    store_others
    jmp     hv_stub_gate_publish

// Called by a user program, through the page at GATE: a system call without a signal. All registers go to the hand-over
// page, and all come from there; H_FRAME is 0 meanwhile, for extended state stays in the processor.
    .globl hv_stub_gate
hv_stub_gate:
    pushfq
    cld
    store_others
    pop     r11                                 // flags
    pop     rcx                                 // RIP
hv_stub_gate_publish:
    mov     qword ptr gs:[{HANDOVER} + {H_FRAME}], 0
    store_changed rsp, "gs:[{HANDOVER} + {H_USER} + 72]"
    mov     r12, rax
    rdfsbase rax
    store_changed rax, "gs:[{HANDOVER} + {H_USER} + 144]"
    mov     gs:[{HANDOVER} + {H_USER} + 0], r12
    mov     gs:[{HANDOVER} + {H_USER} + 8], rbx
    mov     gs:[{HANDOVER} + {H_USER} + 16], rdx
    mov     gs:[{HANDOVER} + {H_USER} + 24], rsi
    mov     gs:[{HANDOVER} + {H_USER} + 32], rdi
    mov     gs:[{HANDOVER} + {H_USER} + 40], rcx
    mov     gs:[{HANDOVER} + {H_USER} + 48], r11
    mov     dword ptr gs:[{HANDOVER} + {H_TURN}], {TURN_SYSCALL}
    fence   "gs:[{HANDOVER} + {H_RSP}]"
hv_stub_gate_wait:                              // a signal from here to its end: waits on in hv_stub_wait
    cmp     dword ptr gs:[{HANDOVER} + {H_HOST_SLEEPS}], 0
    je      1f
    rdtscp
    and     ecx, 0xfff
    mov     gs:[{HANDOVER} + {H_CPU}], ecx
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
    test    dword ptr gs:[{HANDOVER} + {H_USER} + 48], {FLAG_TF} | {FLAG_AC}
    jnz     7f
    mov     rax, gs:[{HANDOVER} + {H_FS_BASE}]
    wrfsbase rax
    rdgsbase rsp
    add     rsp, {HANDOVER} + {H_USER} + 48
    popfq
    mov     rax, gs:[{HANDOVER} + {H_USER} + 0]
    mov     rbx, gs:[{HANDOVER} + {H_USER} + 8]
    mov     rdx, gs:[{HANDOVER} + {H_USER} + 16]
    mov     rsi, gs:[{HANDOVER} + {H_USER} + 24]
    mov     rdi, gs:[{HANDOVER} + {H_USER} + 32]
    mov     rcx, gs:[{HANDOVER} + {H_USER} + 56]
    mov     rbp, gs:[{HANDOVER} + {H_USER} + 64]
    mov     rsp, gs:[{HANDOVER} + {H_USER} + 72]
    mov     r8, gs:[{HANDOVER} + {H_USER} + 80]
    mov     r9, gs:[{HANDOVER} + {H_USER} + 88]
    mov     r10, gs:[{HANDOVER} + {H_USER} + 96]
    mov     r11, gs:[{HANDOVER} + {H_USER} + 104]
    mov     r12, gs:[{HANDOVER} + {H_USER} + 112]
    mov     r13, gs:[{HANDOVER} + {H_USER} + 120]
    mov     r14, gs:[{HANDOVER} + {H_USER} + 128]
    mov     r15, gs:[{HANDOVER} + {H_USER} + 136]
    jmp     qword ptr gs:[{HANDOVER} + {H_USER} + 40]
7:                                              // as another, whose context is there, or by a signal's
    cmp     qword ptr gs:[{HANDOVER} + {H_FRAME}], 0
    je      hv_stub_gate_trap
    rdgsbase rsp
    add     rsp, {STACK} + {STACK_SIZE} - 256
    jmp     hv_stub_resume
hv_stub_gate_trap:
    ud2
hv_stub_gate_end:
