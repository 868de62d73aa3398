// Compare and length: the second half of mem.s, whose header, macros and section it shares.

// ---- Compare: rdi = left, rsi = right, rdx = size; returns left - right at the first difference, or 0 ----
//
// rsi becomes right - left, so that one pointer walks through both.

// r\i = for each byte, whether the vectors at \left and at \left + rsi are equal. Uses r7.
.macro hv_equal v, i, left
.if \v == 16
    movups xmm\i, [\left]
    movups xmm7, [\left + rsi]
    pcmpeqb xmm\i, xmm7
.else
    vmovdqu ymm\i, [\left]
    vpcmpeqb ymm\i, ymm\i, [\left + rsi]
.endif
.endm

// The same for the vector at \left, and for all before it, which are in r\j.
.macro hv_equal_too v, i, left, j
    hv_equal \v, \i, \left
.if \v == 16
    pand xmm\i, xmm\j
.else
    vpand ymm\i, ymm\i, ymm\j
.endif
.endm

// eax = minus the mask of differences in r\i, and its flags: 0 for none, else the lowest bit set is the first.
.macro hv_unequal v, i
.if \v == 16
    pmovmskb eax, xmm\i
    sub eax, 0xffff
.else
    vpmovmskb eax, ymm\i
    inc eax
.endif
.endm

.macro hv_unequal2 v
    hv_equal \v, 0, rdi
    hv_equal_too \v, 3, rdi+\v, 0
    hv_unequal \v, 3
.endm

.macro hv_unequal4 v
    hv_equal \v, 0, rdi
    hv_equal_too \v, 1, rdi+\v, 0
    hv_equal_too \v, 2, rdi+2*\v, 1
    hv_equal_too \v, 3, rdi+3*\v, 2
    hv_unequal \v, 3
.endm

// Returns the difference at the lowest bit set in eax.
.macro hv_difference v
    tzcnt eax, eax
    add rdi, rax
    movzx eax, byte ptr [rdi]
    movzx ecx, byte ptr [rdi + rsi]
    sub eax, ecx
    hv_return \v
.endm

// Sizes above 32.
.macro hv_compare_large v
.if \v > 16
    cmp rdx, 2*\v
    ja 1f
    hv_equal \v, 0, rdi
    hv_unequal \v, 0
    jnz 7f
    lea rdi, [rdi + rdx - \v]
    hv_equal \v, 0, rdi
    hv_unequal \v, 0
    jnz 7f
    hv_return \v
1:
.endif
    cmp rdx, 4*\v
    ja 2f
    hv_unequal2 \v
    jnz 6f
    lea rdi, [rdi + rdx - 2*\v]
    hv_unequal2 \v
    jnz 6f
    hv_return \v
2:
    hv_equal \v, 0, rdi
    hv_unequal \v, 0
    jnz 7f
    lea rdx, [rdi + rdx - 4*\v]     // where the last four vectors begin
    add rdi, \v
    and rdi, -\v
    cmp rdi, rdx
    jae 4f
    .p2align 5
3:
    hv_unequal4 \v
    jnz 5f
    add rdi, 4*\v
    cmp rdi, rdx
    jb 3b
4:
    mov rdi, rdx
    hv_unequal4 \v
    jnz 5f
    hv_return \v

    // There is a difference. Find its vector: the last of them is in r3.
5:
.irp i, 0, 1, 2
    hv_unequal \v, \i
    jnz 7f
    add rdi, \v
.endr
    hv_unequal \v, 3
    jmp 7f
6:
    hv_unequal \v, 0
    jnz 7f
    add rdi, \v
    hv_unequal \v, 3
7:
    hv_difference \v
.endm

// \long = the first, middle and last of the 1 to 3 bytes at \from, big-endian; rcx = size / 2.
.macro hv_bytes long, low, from
    movzx \long, byte ptr [\from]
    shl \long, 8
    mov \low, [\from + rcx]
    shl \long, 8
    mov \low, [\from + rdx - 1]
.endm

hv_function hv_memcmp
.globl hv_bcmp
.type hv_bcmp, @function
hv_bcmp:
    sub rsi, rdi
    cmp rdx, 32
    ja 3f
    cmp edx, 16
    jb .Lhv_compare_small
    hv_equal 16, 0, rdi
    lea rdx, [rdi + rdx - 16]
    hv_equal_too 16, 1, rdx, 0
    hv_unequal 16, 1
    jnz 1f
    ret
1:
    hv_unequal 16, 0
    jnz 2f
    mov rdi, rdx
    hv_unequal 16, 1
2:
    hv_difference 16
3:
    cmp byte ptr [rip + {level}], 0
    je hv_compare_sse2
    hv_compare_large 32
.Lhv_compare_small:
    cmp edx, 8
    jb 5f
    mov rax, [rdi]
    mov rcx, [rdi + rsi]
    cmp rax, rcx
    jne 6f
    lea rdi, [rdi + rdx - 8]
    mov rax, [rdi]
    mov rcx, [rdi + rsi]
    jmp 6f
5:
    cmp edx, 4
    jb 7f
    mov eax, [rdi]
    mov ecx, [rdi + rsi]
    cmp eax, ecx
    jne 6f
    lea rdi, [rdi + rdx - 4]
    mov eax, [rdi]
    mov ecx, [rdi + rsi]
6:
    bswap rax                       // big-endian numbers compare as their bytes do
    bswap rcx
    cmp rax, rcx
    seta al
    sbb al, 0
    movsx eax, al
    ret
7:
    xor eax, eax
    test edx, edx
    jz 8f
    add rsi, rdi
    mov ecx, edx
    shr ecx
    hv_bytes eax, al, rdi
    hv_bytes r8d, r8b, rsi
    sub eax, r8d
8:
    ret
    .p2align 6
hv_compare_sse2:
    hv_compare_large 16
.size hv_memcmp, . - hv_memcmp
.size hv_bcmp, . - hv_bcmp

// ---- Length: rdi = string; returns the number of bytes before the first 0 ----

// edx = mask of the zero bytes in the vector at rdi or, byte by byte, in any of the \count vectors there; sets the
// flags of edx. r0 = 0.
.macro hv_zeros v, count
.if \v == 16
    movdqa xmm1, [rdi]
.if \count > 1
    pminub xmm1, [rdi + \v]
    pminub xmm1, [rdi + 2*\v]
    pminub xmm1, [rdi + 3*\v]
.endif
    pcmpeqb xmm1, xmm0
    pmovmskb edx, xmm1
.else
    vmovdqa ymm1, [rdi]
.if \count > 1
    vpminub ymm1, ymm1, [rdi + \v]
    vpminub ymm1, ymm1, [rdi + 2*\v]
    vpminub ymm1, ymm1, [rdi + 3*\v]
.endif
    vpcmpeqb ymm1, ymm1, ymm0
    vpmovmskb edx, ymm1
.endif
    test edx, edx
.endm

.macro hv_length v
    mov rax, rdi
    mov ecx, edi
    and ecx, \v - 1
    and rdi, -\v
    pxor xmm0, xmm0
    hv_zeros \v, 1
    shr edx, cl                     // drop what lies before the string
    test edx, edx
    jnz 4f
1:
.rept 4
    add rdi, \v
    hv_zeros \v, 1
    jnz 3f
.endr
    add rdi, \v
    and rdi, -4*\v                  // may look at vectors again, but not at the first one
    .p2align 5
2:
    hv_zeros \v, 4
    lea rdi, [rdi + 4*\v]
    jz 2b
    sub rdi, 5*\v                   // back to one vector before these four
    jmp 1b
3:
    sub rdi, rax
    tzcnt eax, edx
    add rax, rdi
    hv_return \v
4:
    tzcnt eax, edx
    hv_return \v
.endm

hv_function hv_strlen
    cmp byte ptr [rip + {level}], 0
    je hv_length_sse2
    hv_length 32
    .p2align 6
hv_length_sse2:
    hv_length 16
.size hv_strlen, . - hv_strlen

.cfi_endproc
.popsection
