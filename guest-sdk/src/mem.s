// Memory functions of a guest: copy, move and set here, compare and length in mem_compare.s, which continues this
// file. mem.rs chooses the variant and tests them all.
//
// Strategy of copy, move and set, by size; V is the size of a vector, 16 (SSE2), 32 (AVX2) or 64 (AVX-512):
//
//   ..=15       overlapping accesses of 8, 4, 2 or 1 bytes
//   ..=128      overlapping vectors of 16 bytes, whatever the processor (set: up to 64)
//   ..=8V       one look at {level}, then overlapping vectors of V bytes (move, V = 16: none are left)
//   more        rounds of four vectors, aligned in the destination; overlapping vectors at both ragged ends
//   {movs_from}.. and {stos_from}..    rep movsb, rep stosb
//
// Compare takes blocks of V, 2V or 4V bytes. Its last block ends where the operands end and may overlap the one
// before, so nothing past the size is read. Length reads aligned vectors only, so it never touches a page that holds
// no byte of the string. Both stop at V = 32, which keeps up with glibc on a processor that has AVX-512.
//
// Overlapping accesses replace loops and jump tables: a size in n..=2n is the first n bytes and the last n bytes.
//
// Rules. System V calling convention, no stack, no red zone, no calls. tzcnt runs as bsf on an old processor, with
// the same result, as its operand is never 0 here. Code that used ymm or zmm registers leaves through vzeroupper,
// so that their upper halves are in the initial state again and need no saving; registers 16 to 31 and the mask
// registers have no such way back and are not used.

.macro hv_function name
    .globl \name
    .type \name, @function
    .p2align 6
\name:
.endm

.macro hv_return v
.if \v > 16
    vzeroupper
.endif
    ret
.endm

.pushsection .text.hv_mem, "ax", @progbits
.cfi_startproc

// ---- Copy and move: rdi = to, rsi = from, rdx = size; returns to ----

// Sizes of 2V to 4V. Like all moves: load everything that a store could overwrite, then store.
.macro hv_move4 mov, r, v
    \mov \r\()0, [rsi]
    \mov \r\()1, [rsi + \v]
    \mov \r\()2, [rsi + rdx - 2*\v]
    \mov \r\()3, [rsi + rdx - \v]
    \mov [rdi], \r\()0
    \mov [rdi + \v], \r\()1
    \mov [rdi + rdx - 2*\v], \r\()2
    \mov [rdi + rdx - \v], \r\()3
    hv_return \v
.endm

// Sizes of 4V to 8V.
.macro hv_move8 mov, r, v
.irp i, 0, 1, 2, 3
    \mov \r\i, [rsi + \i*\v]
.endr
.irp i, 4, 5, 6, 7
    \mov \r\i, [rsi + rdx - (8-\i)*\v]
.endr
.irp i, 0, 1, 2, 3
    \mov [rdi + \i*\v], \r\i
.endr
.irp i, 4, 5, 6, 7
    \mov [rdi + rdx - (8-\i)*\v], \r\i
.endr
    hv_return \v
.endm

// Sizes above 128.
.macro hv_move_large mov, r, v
.if \v == 64
    cmp rdx, 4*\v
    ja 1f
    hv_move4 \mov, \r, \v
1:
.endif
.if \v > 16
    cmp rdx, 8*\v
    ja 2f
    hv_move8 \mov, \r, \v
2:
.endif
    mov rcx, rdi
    sub rcx, rsi                    // to - from: below size where the destination begins inside the source
    cmp rcx, rdx
    jb 6f
    cmp rdx, [rip + {movs_from}]
    jae 9f

    // Forward. The ends are loaded first and stored last.
3:
    \mov \r\()8, [rsi]
.irp i, 4, 5, 6, 7
    \mov \r\i, [rsi + rdx - (8-\i)*\v]
.endr
    lea rdx, [rdi + rdx - 4*\v]     // where the last four vectors go
    sub rsi, rdi
    and rdi, -\v
    add rdi, \v
    cmp rdi, rdx
    jae 5f
    .p2align 5
4:
.irp i, 0, 1, 2, 3
    \mov \r\i, [rdi + rsi + \i*\v]
.endr
.irp i, 0, 1, 2, 3
    \mov [rdi + \i*\v], \r\i
.endr
    add rdi, 4*\v
    cmp rdi, rdx
    jb 4b
5:
.irp i, 4, 5, 6, 7
    \mov [rdx + (\i-4)*\v], \r\i
.endr
    \mov [rax], \r\()8
    hv_return \v

    // Backward, the mirror image.
6:
    \mov \r\()8, [rsi + rdx - \v]
.irp i, 4, 5, 6, 7
    \mov \r\i, [rsi + (\i-4)*\v]
.endr
    lea rcx, [rdi + rdx - \v]       // where the last vector goes
    lea rdi, [rdi + rdx - 1]
    sub rsi, rax
    and rdi, -\v
    lea rdx, [rax + 4*\v]           // where the first four vectors end
    cmp rdi, rdx
    jbe 8f
    .p2align 5
7:
.irp i, 3, 2, 1, 0
    \mov \r\i, [rdi + rsi - (4-\i)*\v]
.endr
.irp i, 3, 2, 1, 0
    \mov [rdi - (4-\i)*\v], \r\i
.endr
    sub rdi, 4*\v
    cmp rdi, rdx
    ja 7b
8:
.irp i, 4, 5, 6, 7
    \mov [rax + (\i-4)*\v], \r\i
.endr
    \mov [rcx], \r\()8
    hv_return \v

    // Long. Where the destination ends inside the source, not far before it, the loop is faster.
9:
    neg rcx                         // from - to
    cmp rcx, [rip + {movs_from}]
    jb 3b
    mov rcx, rdx
    rep movsb
    ret
.endm

hv_function hv_memcpy
.globl hv_memmove
.type hv_memmove, @function
hv_memmove:
    mov rax, rdi
    cmp rdx, 32
    ja 2f
    cmp edx, 16
    jb 1f
    movups xmm0, [rsi]
    movups xmm1, [rsi + rdx - 16]
    movups [rdi], xmm0
    movups [rdi + rdx - 16], xmm1
    ret
1:
    cmp edx, 8
    jb 4f
    mov rcx, [rsi]
    mov r8, [rsi + rdx - 8]
    mov [rdi], rcx
    mov [rdi + rdx - 8], r8
    ret
    .p2align 6
2:
    cmp rdx, 128
    ja 8f
    cmp edx, 64
    ja 3f
    hv_move4 movups, xmm, 16
3:
    hv_move8 movups, xmm, 16
4:
    cmp edx, 4
    jb 5f
    mov ecx, [rsi]
    mov r8d, [rsi + rdx - 4]
    mov [rdi], ecx
    mov [rdi + rdx - 4], r8d
    ret
5:
    cmp edx, 1
    jb 7f
    movzx ecx, byte ptr [rsi]
    je 6f
    movzx r8d, word ptr [rsi + rdx - 2]
    mov [rdi + rdx - 2], r8w
6:
    mov [rdi], cl
7:
    ret
8:
    cmp byte ptr [rip + {level}], 1
    ja hv_move_avx512
    je hv_move_avx2
    hv_move_large movups, xmm, 16
    .p2align 6
hv_move_avx2:
    hv_move_large vmovups, ymm, 32
    .p2align 6
hv_move_avx512:
    hv_move_large vmovups, zmm, 64
.size hv_memcpy, . - hv_memcpy
.size hv_memmove, . - hv_memmove

// ---- Set: rdi = to, esi = byte, rdx = size; returns to ----

// xmm0 = 16 times the byte in esi.
.macro hv_spread
    movd xmm0, esi
    punpcklbw xmm0, xmm0
    pshuflw xmm0, xmm0, 0
    punpcklqdq xmm0, xmm0
.endm

// Sizes above 64. r0 = V times the byte.
.macro hv_set_large mov, r, v
    \mov [rdi], \r\()0
    \mov [rdi + rdx - \v], \r\()0
.if \v == 64
    cmp rdx, 2*\v
    jbe 2f
.endif
    \mov [rdi + \v], \r\()0
    \mov [rdi + rdx - 2*\v], \r\()0
.if \v > 16
    cmp rdx, 4*\v
    jbe 2f
.endif
    cmp rdx, [rip + {stos_from}]
    jae 3f
    lea rcx, [rdi + rdx - 4*\v]     // where the last four vectors go
    \mov [rdi + 2*\v], \r\()0
    \mov [rdi + 3*\v], \r\()0
    \mov [rcx], \r\()0
    \mov [rcx + \v], \r\()0
    cmp rdx, 8*\v
    jbe 2f
    and rdi, -\v
    add rdi, 4*\v
    cmp rdi, rcx
    jae 2f
    .p2align 5
1:
.irp i, 0, 1, 2, 3
    \mov [rdi + \i*\v], \r\()0
.endr
    add rdi, 4*\v
    cmp rdi, rcx
    jb 1b
2:
    hv_return \v
3:
    mov r8, rax
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    hv_return \v
.endm

hv_function hv_memset
    mov rax, rdi
    cmp rdx, 32
    ja 5f
    hv_spread
    cmp edx, 16
    jb 1f
    movups [rdi], xmm0
    movups [rdi + rdx - 16], xmm0
    ret
1:
    cmp edx, 8
    jb 2f
    movq [rdi], xmm0
    movq [rdi + rdx - 8], xmm0
    ret
2:
    cmp edx, 4
    jb 3f
    movd [rdi], xmm0
    movd [rdi + rdx - 4], xmm0
    ret
3:
    cmp edx, 1
    jb 4f
    mov [rdi], sil
    mov [rdi + rdx - 1], sil
    shr edx
    mov [rdi + rdx], sil
4:
    ret
    .p2align 6
5:
    cmp rdx, 64
    ja 6f
    hv_spread
    movups [rdi], xmm0
    movups [rdi + 16], xmm0
    movups [rdi + rdx - 32], xmm0
    movups [rdi + rdx - 16], xmm0
    ret
6:
    cmp byte ptr [rip + {level}], 1
    jb hv_set_sse2
    je hv_set_avx2
    vpbroadcastb zmm0, esi
    hv_set_large vmovups, zmm, 64
    .p2align 6
hv_set_avx2:
    vmovd xmm0, esi
    vpbroadcastb ymm0, xmm0
    hv_set_large vmovups, ymm, 32
    .p2align 6
hv_set_sse2:
    hv_spread
    hv_set_large movups, xmm, 16
.size hv_memset, . - hv_memset
