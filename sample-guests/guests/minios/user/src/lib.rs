//! Stand-in.
#![no_std]
#![allow(unsafe_code, clippy::allow_attributes)]
use core::arch::{asm, global_asm};
pub unsafe fn syscall(number: u64, a: [u64; 6]) -> u64 {
    let result;
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3],
         in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _);
    }
    result
}
global_asm!(
    ".globl memcpy", "memcpy:", "mov rax, rdi", "mov rcx, rdx", "rep movsb", "ret",
    ".globl memset", "memset:", "mov r8, rdi", "mov eax, esi", "mov rcx, rdx", "rep stosb", "mov rax, r8", "ret",
    ".globl memmove", "memmove:", "mov rax, rdi", "mov rcx, rdx", "cmp rdi, rsi", "jbe 1f",
    "lea rdi, [rdi + rdx - 1]", "lea rsi, [rsi + rdx - 1]", "std", "rep movsb", "cld", "ret", "1: rep movsb", "ret",
    ".globl bcmp", "bcmp:", ".globl memcmp", "memcmp:", "xor eax, eax", "mov rcx, rdx", "test rcx, rcx", "jz 2f",
    "repe cmpsb", "movzx eax, byte ptr [rdi - 1]", "movzx edx, byte ptr [rsi - 1]", "sub edx, eax", "mov eax, edx", "2: ret",
);
