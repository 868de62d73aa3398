//! Memory functions, which the compiler calls by name wherever a value moves. The linker script gives them their usual
//! names. They are short rather than fast: a program for which that counts brings its own.

#![expect(unsafe_code, reason = "written in assembly")]

core::arch::global_asm!(
    ".pushsection .text.guest_user_memory, \"ax\", @progbits",
    // (rdi = to, rsi = from, rdx = size) -> to
    "guest_user_memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx",
    "jb 2f", // `to` is inside the source: from the end
    "rep movsb",
    "ret",
    "2: lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    // (rdi = to, esi = byte, rdx = size) -> to
    "guest_user_memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    // (rdi = left, rsi = right, rdx = size) -> the sign of the first difference, or 0
    "guest_user_memcmp:",
    "xor eax, eax", // also says "equal", if the size is 0
    "mov rcx, rdx",
    "repe cmpsb",
    "je 3f",
    "movzx eax, byte ptr [rdi - 1]",
    "movzx ecx, byte ptr [rsi - 1]",
    "sub eax, ecx",
    "3: ret",
    ".globl guest_user_memmove, guest_user_memset, guest_user_memcmp",
    ".popsection",
);
