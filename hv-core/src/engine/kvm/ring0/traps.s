// What comes without being called: a program's system calls, exceptions, and the monitor's interrupt. Interrupts are off.
//
// Vectors have stacks of their own, so the red zone of what they interrupt is safe; the vCPU's area follows from RSP, and GS is
// trusted only where it is known to be swapped.

    .section .text.hv_traps, "ax", @progbits

// Takes a program's registers to its context, whose V is then in RAX; RAX itself is in the scratch words. CR3 is the guest
// kernel's. RSP, RIP and flags are left to the caller, and so is R11.
.macro take_program
    mov     rax, gs:[{E_KERNEL_CR3}]
    mov     cr3, rax
    mov     rax, gs:[{E_CONTEXT}]
    mov     [rax + {C_RBX}], rbx
    mov     [rax + {C_RDX}], rdx
    mov     [rax + {C_RSI}], rsi
    mov     [rax + {C_RDI}], rdi
    mov     [rax + {C_RBP}], rbp
    mov     [rax + {C_RCX}], rcx
    mov     [rax + {C_R8}], r8
    mov     [rax + {C_R8} + 8], r9
    mov     [rax + {C_R8} + 16], r10
    mov     [rax + {C_R8} + 24], r11
    mov     [rax + {C_R8} + 32], r12
    mov     [rax + {C_R8} + 40], r13
    mov     [rax + {C_R8} + 48], r14
    mov     [rax + {C_R8} + 56], r15
    mov     rcx, gs:[{E_SCRATCH}]
    mov     [rax + {C_RAX}], rcx
.endm

// SYSCALL of a program: RCX its RIP, R11 its flags. If it is the guest kernel's own, GS is a program's now, and the first store
// faults, which the monitor knows by this place.
    .globl hv_syscall
hv_syscall:
    swapgs
    mov     gs:[{E_SCRATCH}], rax
    mov     gs:[{E_SCRATCH} + 8], rsp
    .globl hv_syscall_end
hv_syscall_end:
    mov     rsp, gs:[{E_STACK_END}]
    mov     gs:[{E_SCRATCH} + 16], rcx
    take_program
    mov     rcx, gs:[{E_SCRATCH} + 16]
    mov     [rax + {C_RIP}], rcx
    and     r11, {USER_FLAGS}
    or      r11, {FIXED_FLAGS}
    mov     [rax + {C_RFLAGS}], r11
    mov     [rax + {C_R8} + 24], r11
    mov     rcx, gs:[{E_SCRATCH} + 8]
    mov     [rax + {C_RSP}], rcx
    mov     r12d, {TRAP_SYSCALL}

// RAX the context, R12 the trap; the rest is in the context.
hv_came_back:
    mov     rbx, rax
    rdfsbase rcx
    mov     [rbx + {C_FS_BASE}], rcx
    mov     rcx, gs:[{E_KEPT} + 56]
    wrfsbase rcx
    mov     rcx, gs:[{E_XSTATE}]
    mov     eax, gs:[{E_XSTATE_MASK}]
    mov     edx, gs:[{E_XSTATE_MASK} + 4]
    cmp     dword ptr gs:[{E_HAS_XSAVEOPT}], 0
    je      1f
    xsaveopt64 [rcx]
    jmp     2f
1:
    xsave64 [rcx]
2:
    fninit
    fldcw   gs:[{E_CONTROL}]
    ldmxcsr gs:[{E_MXCSR}]
    mov     dword ptr [rbx + {C_XSTATE_VALID}], 1
    mov     [rbx + {C_TRAP}], r12d
    mov     qword ptr gs:[{E_USER_ROOT}], 0
    xor     eax, eax
    mov     edx, r12d
    jmp     hv_leave_user

// The processor's vectors, each of 16 bytes: all have an error code afterwards, and the vector.
    .balign 16
    .globl hv_vectors
hv_vectors:
    .set    hv_vector, 0
    .rept   32
    .org    hv_vectors + hv_vector * 16
    .if     hv_vector == 8 || (hv_vector >= 10 && hv_vector <= 14) || hv_vector == 17 || hv_vector == 21 || hv_vector == 29 || hv_vector == 30
    .else
    push    0
    .endif
    push    hv_vector
    jmp     hv_exception
    .set    hv_vector, hv_vector + 1
    .endr
    .org    hv_vectors + 32 * 16

// [rsp] vector, error, RIP, CS, RFLAGS, RSP, SS.
hv_exception:
    cld
    test    byte ptr [rsp + 24], 3
    jz      hv_kernel_exception
    cmp     qword ptr [rsp + 16], {GATE}        // it has called the gate, and is let come there: a step, at the most
    je      3f
    swapgs
    mov     gs:[{E_SCRATCH}], rax
hv_from_program:                                // RAX is in the scratch word
    take_program
    mov     rcx, [rsp + 16]
    mov     [rax + {C_RIP}], rcx
    mov     rcx, [rsp + 32]
    and     rcx, {USER_FLAGS}
    or      rcx, {FIXED_FLAGS}
    mov     [rax + {C_RFLAGS}], rcx
    mov     rcx, [rsp + 40]
    mov     [rax + {C_RSP}], rcx
    mov     rdi, [rsp]
    mov     rsi, [rsp + 8]
    mov     rsp, gs:[{E_STACK_END}]
    mov     r12d, {TRAP_INTERRUPTED}
    cmp     edi, 0x20
    je      hv_came_back
    cmp     edi, 14
    je      1f
    mov     [rax + {C_VECTOR}], edi
    mov     r12d, {TRAP_EXCEPTION}
    jmp     hv_came_back
1:
    mov     rcx, cr2
    mov     [rax + {C_ADDRESS}], rcx
    xor     ecx, ecx                            // READ; bit 1 of the error says write, bit 4 a fetch
    test    esi, 2
    setnz   cl
    test    esi, 16
    jz      2f
    mov     ecx, 2
2:
    mov     [rax + {C_ACCESS}], ecx
    mov     r12d, {TRAP_PAGE_FAULT}
    jmp     hv_came_back
3:
    add     rsp, 16
    iretq

// Copies a word of the frame, as hv_kernel_exception has it, to the trap's record at RAX, or back. Loses RCX.
.macro hv_trap_word record, frame
    mov     rcx, [rsp + \frame]
    mov     [rax + {E_TRAP} + \record], rcx
.endm
.macro hv_frame_word record, frame
    mov     rcx, [rax + {E_TRAP} + \record]
    mov     [rsp + \frame], rcx
.endm

// Ring 0's own. It is told to the monitor, unless it is one that was reckoned with.
hv_kernel_exception:
    push    rax
    push    rcx                                 // [rsp + 16] vector, [rsp + 32] RIP
    lea     rax, [rip + hv_xrstor]
    cmp     rax, [rsp + 32]
    je      2f
    lea     rax, [rip + hv_gate_read]
    cmp     rax, [rsp + 32]
    je      3f
    mov     rax, rsp
    and     rax, -{STACK_MASK} - 1
    mov     [rax + {E_TRAP} + 8], rbx
    mov     [rax + {E_TRAP} + 24], rdx
    mov     [rax + {E_TRAP} + 32], rsi
    mov     [rax + {E_TRAP} + 40], rdi
    mov     [rax + {E_TRAP} + 48], rbp
    mov     [rax + {E_TRAP} + 64], r8
    mov     [rax + {E_TRAP} + 72], r9
    mov     [rax + {E_TRAP} + 80], r10
    mov     [rax + {E_TRAP} + 88], r11
    mov     [rax + {E_TRAP} + 96], r12
    mov     [rax + {E_TRAP} + 104], r13
    mov     [rax + {E_TRAP} + 112], r14
    mov     [rax + {E_TRAP} + 120], r15
    .irp    pair, "0, 8", "16, 0", "56, 56", "128, 32", "136, 48", "152, 16", "160, 24", "176, 40"
    hv_trap_word \pair
    .endr
    rdfsbase rcx
    mov     [rax + {E_TRAP} + 144], rcx
    mov     rcx, cr2
    mov     [rax + {E_TRAP} + 168], rcx
    mov     rbx, rax
    mov     edx, {PORT_TRAP}
    out     dx, eax
    mov     rax, rbx                            // it goes on, with what is there now
    .irp    pair, "56, 56", "128, 32", "136, 48"
    hv_frame_word \pair
    .endr
    mov     rcx, [rax + {E_TRAP} + 144]
    wrfsbase rcx
    mov     rbx, [rax + {E_TRAP} + 8]
    mov     rcx, [rax + {E_TRAP} + 16]
    mov     rdx, [rax + {E_TRAP} + 24]
    mov     rsi, [rax + {E_TRAP} + 32]
    mov     rdi, [rax + {E_TRAP} + 40]
    mov     rbp, [rax + {E_TRAP} + 48]
    mov     r8,  [rax + {E_TRAP} + 64]
    mov     r9,  [rax + {E_TRAP} + 72]
    mov     r10, [rax + {E_TRAP} + 80]
    mov     r11, [rax + {E_TRAP} + 88]
    mov     r12, [rax + {E_TRAP} + 96]
    mov     r13, [rax + {E_TRAP} + 104]
    mov     r14, [rax + {E_TRAP} + 112]
    mov     r15, [rax + {E_TRAP} + 120]
    mov     rax, [rax + {E_TRAP}]
    add     rsp, 32
    iretq
2:
    lea     rax, [rip + hv_xrstor_failed]
    jmp     4f
3:
    lea     rax, [rip + hv_gate_failed]
4:
    mov     [rsp + 32], rax
    pop     rcx
    pop     rax
    add     rsp, 16
    iretq

// The monitor's interrupt.
    .balign 16
    .globl hv_upcall
hv_upcall:
    cld
    test    byte ptr [rsp + 8], 3
    jz      1f
    cmp     qword ptr [rsp], {GATE}             // it has called the gate, which is as good
    je      4f
    swapgs
    mov     gs:[{E_SCRATCH}], rax
    push    0
    push    0x20
    jmp     hv_from_program
1:
    push    rax
    push    rcx
    push    rdx                                 // [rsp + 24] RIP
    mov     rax, rsp
    and     rax, -{STACK_MASK} - 1
    mov     ecx, [rax + {E_FLUSH_WANTED}]
    cmp     ecx, [rax + {E_FLUSH_DONE}]
    je      2f
    mov     rdx, cr3
    mov     cr3, rdx
    mov     [rax + {E_FLUSH_DONE}], ecx
2:
    movabs  rcx, {SLOT_255}                     // at the first instruction of an entry, which looks before it ends
    cmp     [rsp + 24], rcx
    jae     3f
    cmp     dword ptr [rax + {V_UPCALL}], {PENDING}
    jne     3f
    mov     rcx, [rsp + 48]                     // below the red zone of what is interrupted
    sub     rcx, 128
    and     rcx, -16
    sub     rcx, 40
    mov     rdx, [rsp + 24]
    mov     [rcx], rdx
    mov     qword ptr [rcx + 8], {KERNEL_CODE}
    mov     rdx, [rsp + 40]
    mov     [rcx + 16], rdx
    mov     rdx, [rsp + 48]
    mov     [rcx + 24], rdx
    mov     qword ptr [rcx + 32], {KERNEL_DATA}
    lock or dword ptr [rax + {V_UPCALL}], {MASKED}
    mov     [rsp + 48], rcx
    mov     rcx, [rax + {V_UPCALL_ENTRY}]
    mov     [rsp + 24], rcx
    mov     qword ptr [rsp + 40], {FIXED_FLAGS}
3:
    pop     rdx
    pop     rcx
    pop     rax
4:
    iretq
    .globl hv_upcall_end
hv_upcall_end:

// The gate's vector, on the stack for calls: reads the program's stack, where `call` has left its RIP, while that is mapped.
    .globl hv_gate
hv_gate:
    cld
    swapgs
    mov     gs:[{E_SCRATCH}], rax
    mov     gs:[{E_SCRATCH} + 8], rcx
    push    0
    push    13                                  // of an `int` that is not the gate's
    mov     eax, {GATE_BEHIND}
    cmp     rax, [rsp + 16]
    jne     2f
    mov     rax, [rsp + 40]
    mov     rcx, rax
    add     rcx, 8
    shr     rcx, 47
    jnz     hv_gate_failed
hv_gate_read:
    mov     rcx, [rax]
    mov     [rsp + 16], rcx
    add     rax, 8
    mov     [rsp + 40], rax
    mov     rcx, gs:[{E_SCRATCH} + 8]
    take_program
    mov     rcx, [rsp + 16]
    mov     [rax + {C_RIP}], rcx
    mov     rcx, [rsp + 32]
    and     rcx, {USER_FLAGS}
    or      rcx, {FIXED_FLAGS}
    mov     [rax + {C_RFLAGS}], rcx
    mov     rcx, [rsp + 40]
    mov     [rax + {C_RSP}], rcx
    mov     rsp, gs:[{E_STACK_END}]
    mov     r12d, {TRAP_SYSCALL}
    jmp     hv_came_back
2:                                              // an `int` of the program's own: as any other
    sub     qword ptr [rsp + 16], 2
    mov     rcx, gs:[{E_SCRATCH} + 8]
    jmp     hv_from_program
hv_gate_failed:                                 // its stack is gone
    mov     rcx, gs:[{E_SCRATCH} + 8]
    take_program
    mov     rsp, gs:[{E_STACK_END}]
    mov     r12d, {TRAP_KILLED}
    jmp     hv_came_back

// The page at GATE in every user address space.
    .section .text.hv_gate_page, "ax", @progbits
    .balign 4096
    .globl hv_gate_page
hv_gate_page:
    int     {GATE_VECTOR}
    ud2
    .balign 4096
