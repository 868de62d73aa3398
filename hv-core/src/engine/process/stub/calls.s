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

// Orders the stores before it with the loads after it, on a word that nobody else looks at: done on the word that was
// stored, it would have to get that back from whoever looks there.
.macro fence word
    lock or dword ptr \word, 0
.endm

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

// (call, a0, a1, a2, a3, a4) -> (rax status, rdx value). Steps are those of handover::Caller.
hv_stub_call:
    cmp     edi, {CALL_EVENT_SEND}
    je      hv_stub_event_send
hv_stub_call_monitor:
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
    mov     gs:[{HANDOVER} + {H_TURN}], r9d
    fence   "gs:[{HANDOVER} + {H_RSP}]"
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
    .globl hv_stub_futex_2
hv_stub_futex_2:
    jmp     3b
8:                                              // take the answer
    mov     eax, gs:[{HANDOVER} + {H_STATUS}]
    cmp     eax, {PARK}
    je      hv_stub_park
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

// The vCPU has stopped itself: its thread goes where it began.
hv_stub_park:
    rdgsbase rsp
    lea     rsp, [rsp + {STACK} + {STACK_SIZE} - 128]
    jmp     hv_stub_vcpu

// (rsi channel) -> (rax status, rdx value). Does what `Events::raise` does, in the same order, if all that it takes is memory
// and a futex; the rest, and what is wrong, is left to the monitor.
hv_stub_event_send:
    mov     rax, rdx
    or      rax, rcx
    or      rax, r8
    or      rax, r9
    jnz     hv_stub_call_monitor
    cmp     rsi, {EVENT_CHANNELS}
    jae     hv_stub_call_monitor
    movabs  r10, {BINDINGS}
    movzx   eax, byte ptr [r10 + rsi]
    cmp     eax, {UNBOUND}
    je      hv_stub_call_monitor
    mov     r8d, eax                            // r8 the vCPU, r9 its area
    mov     r9, r8
    shl     r9, {STRIDE_SHIFT}
    movabs  r11, {VCPU_PAGES}
    add     r9, r11
    mov     r11d, esi                           // r11 the word of the channel, eax its bit
    shr     r11d, 6
    mov     ecx, esi
    mov     eax, 1
    shl     rax, cl
    lock or [r9 + r11 * 8 + {V_PENDING}], rax
    cmp     byte ptr [r10 + rsi], r8b           // bound to another meanwhile: again, by the monitor
    jne     3f
    cmp     dword ptr [r9 + {HANDOVER} + {H_POLLS}], 0
    jne     5f                                  // the monitor polls for it: again, by that
    test    [r9 + r11 * 8 + {V_MASKED}], rax
    jnz     2f
    lock bts dword ptr [r9 + {V_UPCALL}], {UPCALL_PENDING_BIT}
    jc      2f
    cmp     dword ptr [r9 + {V_RUN_STATE}], {RUN_BLOCKED}
    jne     1f
    mov     dword ptr gs:[{HANDOVER} + {H_LOOKS}], 1
    lea     rdi, [r9 + {V_UPCALL}]
    mov     esi, {FUTEX_WAKE}
    mov     edx, {WAKE_ALL}
    mov     eax, {SYS_FUTEX}
    syscall
    .globl hv_stub_futex_10
hv_stub_futex_10:
    xor     eax, eax                            // a full fence: the store, then the look at hv_stub_finish
    xchg    gs:[{HANDOVER} + {H_LOOKS}], eax
    jmp     2f
1:
    cmp     r8d, gs:[{V_VCPU}]                  // this one: it looks before it returns
    je      2f
    test    dword ptr [r9 + {V_UPCALL}], {UPCALL_MASKED}
    jz      4f
    cmp     dword ptr [r9 + {HANDOVER} + {H_DIRECT}], 0
    jne     4f                                  // a program is interrupted though upcalls are masked
    mov     eax, [r9 + {HANDOVER} + {H_TURN}]
    cmp     eax, {TURN_ENTER_USER}
    je      4f
    cmp     eax, {TURN_USER_TRAP}
    je      4f
2:
    xor     eax, eax
    xor     edx, edx
    jmp     hv_stub_finish
3:
    not     rax
    lock and [r9 + r11 * 8 + {V_PENDING}], rax
5:
    xor     ecx, ecx
    xor     r8d, r8d
    xor     r9d, r9d
    xor     edx, edx
    jmp     hv_stub_call_monitor
4:                                              // it has to be interrupted, unless it looks before it returns to the guest
    cmp     dword ptr [r9 + {HANDOVER} + {H_LOOKS}], 0
    jne     2b
    cmp     dword ptr [r9 + {HANDOVER} + {H_TURN}], {TURN_CALL}
    je      2b
    mov     gs:[{HANDOVER} + {H_ARGUMENTS}], r8
    mov     gs:[{HANDOVER} + {H_RSP}], rsp
    mov     gs:[{HANDOVER} + {H_RBP}], rbp
    mov     r9d, {TURN_NOTIFY}
    jmp     hv_stub_publish

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
