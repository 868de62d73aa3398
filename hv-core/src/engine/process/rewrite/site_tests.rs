//! Sites that are safe, sites that are not, and random ones.

use super::*;

const AT: usize = 0x100;
const SLOT: u32 = 0x1_1020;

/// A page of `nop`s with these bytes at an offset.
fn page(at: usize, bytes: &[u8]) -> Code {
    let mut code = [0x90; PAGE_SIZE as usize];
    code[at..at + bytes.len()].copy_from_slice(bytes);
    code
}

/// `mov eax, n; syscall`.
fn short(number: u32) -> Vec<u8> {
    [&[0xb8][..], &number.to_le_bytes(), &[0x0f, 0x05]].concat()
}

/// What becomes of a short site behind these bytes.
fn behind(before: &[u8], number: u32) -> Result<Site, Refusal> {
    let code = page(AT, &[before, &short(number)].concat());
    Site::find(&code, AT + before.len() + 5, number.into())
}

/// What becomes of a short site at [`AT`], with these bytes somewhere.
fn beside(at: usize, bytes: &[u8]) -> Result<Site, Refusal> {
    let mut code = page(AT, &short(39));
    code[at..at + bytes.len()].copy_from_slice(bytes);
    Site::find(&code, AT + 5, 39)
}

#[test]
fn both_forms_are_taken() {
    for number in [0, 1, 39, 231, 0x7fff, 0xffff] {
        assert_eq!(behind(&[], number), Ok(Site { start: AT, syscall: AT + 5, number }));
        let long = [&[0x48, 0xc7, 0xc0][..], &number.to_le_bytes(), &[0x0f, 0x05]].concat();
        let site = Site::find(&page(AT, &long), AT + 7, number.into());
        assert_eq!(site, Ok(Site { start: AT, syscall: AT + 7, number }));
    }
}

#[test]
fn what_compilers_put_before_a_call_is_no_reason_to_refuse() {
    for before in [
        &[0xc3][..],                                    // ret
        &[0x0f, 0x05],                                  // syscall
        &[0x31, 0xff],                                  // xor edi, edi
        &[0x48, 0x89, 0xe5],                            // mov rbp, rsp
        &[0x41, 0xba, 8, 0, 0, 0],                      // mov r10d, 8
        &[0x4c, 0x8b, 0x54, 0x24, 0x28],                // mov r10, [rsp + 40]
        &[0xf3, 0x0f, 0x1e, 0xfa],                      // endbr64
        &[0x74, 0x20],                                  // je, far behind the site
        &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0], // nop word [rax + rax]
        &[0x48, 0xc7, 0xc7, 1, 0, 0, 0],                // mov rdi, 1
        &[0xcc, 0xcc, 0xcc],
    ] {
        assert!(behind(before, 39).is_ok(), "{before:x?} {:?}", behind(before, 39));
    }
}

#[test]
fn what_is_no_move_of_the_number_is_refused() {
    let syscall =
        |before: &[u8], rax| Site::find(&page(AT, &[before, &[0x0f, 0x05]].concat()), AT + before.len(), rax);
    assert_eq!(syscall(&[0x89, 0xf8], 39), Err(Refusal::Form)); // mov eax, edi
    assert_eq!(syscall(&[0xb8, 39, 0, 0, 0, 0x90], 39), Err(Refusal::Form)); // something between
    assert_eq!(syscall(&[0xb8, 39, 0, 0, 0], 40), Err(Refusal::Form)); // it was executed with another number
    assert_eq!(syscall(&[0xb8, 39, 0, 0, 0], 39 | 1 << 32), Err(Refusal::Form));
    assert_eq!(syscall(&[0x41, 0xb8, 39, 0, 0, 0], 39), Err(Refusal::Ambiguous)); // mov r8d, 39
    let code = page(AT, &[0xb8, 39, 0, 0, 0, 0x0f, 0x0b]); // ud2
    assert_eq!(Site::find(&code, AT + 5, 39), Err(Refusal::Form));
}

#[test]
fn a_number_that_can_be_an_address_is_refused() {
    assert_eq!(behind(&[], 0x1_0000), Err(Refusal::Number));
    assert_eq!(behind(&[], 0x4000_0027), Err(Refusal::Number));
}

#[test]
fn a_site_at_the_edge_of_its_page_is_refused() {
    let find = |at: usize| {
        let mut code = [0x90; PAGE_SIZE as usize];
        let bytes = short(39);
        let length = bytes.len().min(code.len() - at);
        code[at..at + length].copy_from_slice(&bytes[..length]);
        Site::find(&code, at + 5, 39)
    };
    let last = PAGE_SIZE as usize - LENGTH;
    assert!(find(last).is_ok());
    (last + 1..PAGE_SIZE as usize).for_each(|at| assert_eq!(find(at), Err(Refusal::Edge), "{at}"));
    (0..LONGEST).for_each(|at| assert_eq!(find(at), Err(Refusal::Edge), "{at}"));
}

#[test]
fn another_way_to_the_call_is_refused_unless_it_cannot_have_been_gone() {
    assert_eq!(behind(&[0x05], 39), Ok(Site { start: AT + 1, syscall: AT + 6, number: 39 })); // add eax, ..: not its end
    for before in [
        &[0x41][..],         // mov r8d, 39
        &[0x48, 0xc7, 0x45], // mov qword ptr [rbp - 72], 39
        &[0xc7, 0x40],       // mov dword ptr [rax - 72], 39: RAX is known, and is not that far above 0
        &[0x8d],             // lea edi, [rax + 39]: no access
        &[0x0f, 0x1f],       // nop dword ptr [rax + 39]: no access
        &[0x64, 0x8b],       // mov edi, fs:[rax + 39]
        &[0x67, 0x8b],       // mov edi, [eax + 39]
        &[0xf7],             // idiv dword ptr [rax + 39]: writes RAX
        &[0x8b, 0x84],       // mov eax, [rax + rdi * 4 + 39]
        &[0x80, 0x3d],       // cmp byte ptr [rip + ..], 0
    ] {
        assert_eq!(behind(before, 39), Err(Refusal::Ambiguous), "{before:x?}");
    }
    // mov edi, [rax + n]; add [rax + n], edi: with n in RAX, below 0x10000, these have faulted.
    for before in [&[0x8b][..], &[0x01]] {
        assert!(behind(before, 39).is_ok(), "{before:x?}");
        assert_eq!(behind(before, 0x9000), Err(Refusal::Ambiguous), "{before:x?}");
    }
}

#[test]
fn a_branch_to_the_middle_is_refused() {
    for target in 1..LENGTH {
        let to = |at: usize, length: usize| (AT + target).wrapping_sub(at + length);
        let near = |at| [0xeb, to(at, 2) as u8];
        assert_eq!(beside(AT - 40, &near(AT - 40)), Err(Refusal::Branch), "{target}");
        assert_eq!(beside(AT + 40, &near(AT + 40)), Err(Refusal::Branch), "{target}");
        let conditional = [0x75, to(AT + 7, 2) as u8];
        assert_eq!(beside(AT + 7, &conditional), Err(Refusal::Branch), "{target}");
        for at in [0, 0x40, 0x800, 0xff0] {
            let far = |opcode: &[u8]| [opcode, &(to(at, opcode.len() + 4) as u32).to_le_bytes()].concat();
            for opcode in [&[0xe8][..], &[0xe9], &[0x0f, 0x84]] {
                assert_eq!(beside(at, &far(opcode)), Err(Refusal::Branch), "{target} {at:#x} {opcode:x?}");
            }
        }
    }
    // To its beginning, and behind it.
    for target in [AT, AT + LENGTH] {
        assert!(beside(AT + 40, &[0xeb, target.wrapping_sub(AT + 42) as u8]).is_ok());
    }
}

/// What it must be, by other means than those of this module: seven bytes that are one jump through the slot, and the others
/// as they were.
#[test]
fn random_pages_are_rewritten_in_seven_bytes_that_are_one_jump() {
    let mut random = fastrand::Rng::with_seed(7);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..4000 {
        let mut code: Code = std::array::from_fn(|_| if random.u8(..3) == 0 { random.u8(..) } else { 0x90 });
        let (at, number) = (random.usize(..PAGE_SIZE as usize), random.u32(..0x1_1000));
        for (i, byte) in short(number).into_iter().enumerate().filter(|_| random.u8(..100) > 0) {
            code[(at + i) % PAGE_SIZE as usize] = byte;
        }
        let rax = if random.u8(..10) == 0 { random.u64(..) } else { number.into() };
        let syscall = (at + 5) % PAGE_SIZE as usize;
        let Ok(site) = Site::find(&code, syscall, rax) else {
            refused += 1;
            continue;
        };
        taken += 1;
        assert_eq!((site.start, site.syscall, u64::from(site.number)), (at, syscall, rax));
        assert_eq!(code[at..at + 7], [&[0xb8][..], &(rax as u32).to_le_bytes(), &[0x0f, 0x05]].concat());
        assert!(rax < 0x1_0000 && at >= 15 && at + 7 <= PAGE_SIZE as usize);
        let mut rewritten = code;
        rewritten[at..at + LENGTH].copy_from_slice(&site.jump(SLOT));
        let jump = decode(&rewritten, at);
        assert_eq!((jump.len(), jump.mnemonic(), jump.op0_kind()), (7, Mnemonic::Jmp, OpKind::Memory));
        assert_eq!((jump.memory_base(), jump.memory_index()), (Register::None, Register::None));
        assert_eq!(jump.memory_displacement64(), u64::from(SLOT));
        assert_eq!(rewritten[at + 5..at + 7], [0x01, 0x00], "a jump to the middle adds to [RAX]");
    }
    assert!(taken > 500 && refused > 500, "{taken} taken, {refused} refused");
}
