//! Starting sandbox processes, and noticing their death.
//!
//! One thread starts all sandboxes of the process and lives as long as it, because a child's
//! `PR_SET_PDEATHSIG` belongs to the *thread* that made it: when the monitor dies, however it dies, its
//! sandboxes do. The same thread waits for them, and tells whoever asked for one when it is gone.
//!
//! It gives up its own capabilities first, so that a sandbox has none even if the monitor runs as root.

#![expect(unsafe_code, reason = "clone, and a child that shares memory until it executes")]

use super::elf;
use crate::cpu_clock::this_thread;
use crossbeam_channel::{Receiver, Sender};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use rustix::process::{Pid, Signal, pidfd_send_signal};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// A running sandbox process. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Child {
    /// Its process number, and the thread number of its mapping thread.
    pub pid: i32,
    handle: Arc<OwnedFd>,
}

impl Child {
    /// Kills the process. It is gone when the spawner's notice has been given.
    pub(super) fn kill(&self) {
        // Fails only if it is dead already.
        let _ = pidfd_send_signal(&*self.handle, Signal::KILL);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a sandbox ended, as `waitid` has it: a signal's number, or an exit code.
#[derive(Clone, Copy, Debug)]
pub(super) enum Death {
    Signal(i32),
    Exit(i32),
    /// Somebody else in this program waited for it.
    Unknown,
}

/// How far a sandbox's life has come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage<'a> {
    /// It has executed.
    Started {
        /// Its process number.
        pid: i32,
        /// Reaches it.
        handle: &'a Arc<OwnedFd>,
    },
    /// It runs no more.
    Dead(Death),
    /// Nothing of it is left on the host.
    Gone,
}

/// Told, on the spawner's thread, of each stage.
pub(super) type Notice = Box<dyn Fn(Stage<'_>) + Send>;

/// How long the spawner rests when the host cannot let it wait.
const BREATH: std::time::Duration = std::time::Duration::from_millis(10);

/// What the spawner's thread has worked for a VM, in nanoseconds of processor time.
pub(super) type Bill = Arc<AtomicU64>;

struct Request {
    descriptors: [OwnedFd; 6],
    notice: Notice,
    bill: Bill,
    reply: Sender<io::Result<Child>>,
}

struct Spawner {
    /// The process that its thread is in.
    process: Pid,
    requests: Sender<Request>,
    doorbell: OwnedFd,
}

/// A child that the spawner has been asked for. Dropped, it is killed once it is there.
pub(super) struct Spawning(Receiver<io::Result<Child>>);

impl Spawning {
    /// Waits until it is there.
    pub(super) fn wait(self) -> io::Result<Child> {
        self.0.recv().expect("the spawner answers each request")
    }
}

/// Starts a sandbox process with these files as its descriptors 3 to 8, and nothing else of the monitor's.
pub(super) fn spawn(descriptors: [OwnedFd; 6], notice: Notice, bill: Bill) -> io::Result<Spawning> {
    let (reply, answer) = crossbeam_channel::bounded(1);
    let request = Request { descriptors, notice, bill, reply };
    {
        let mut spawner = SPAWNER.lock().expect("no thread panics with the lock held");
        // A thread does not survive a fork of its process: then there is another, with another number.
        let this_process = rustix::process::getpid();
        let spawner = match &mut *spawner {
            Some(spawner) if spawner.process == this_process => spawner,
            none => none.insert(start(this_process)?),
        };
        spawner.requests.send(request).expect("the spawner lives as long as the process");
        rustix::io::write(&spawner.doorbell, &1_u64.to_ne_bytes())?;
    }
    Ok(Spawning(answer))
}

static SPAWNER: Mutex<Option<Spawner>> = Mutex::new(None);

fn start(process: Pid) -> io::Result<Spawner> {
    let executable = elf::executable()?;
    let (requests, inbox) = crossbeam_channel::unbounded();
    let doorbell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let bell = doorbell.try_clone()?;
    std::thread::Builder::new()
        .name("hv-spawner".into())
        .stack_size(64 << 10)
        .spawn(move || run(executable, &inbox, &bell))?;
    Ok(Spawner { process, requests, doorbell })
}

/// The spawner's thread: waits for requests and for deaths.
fn run(executable: &OwnedFd, inbox: &Receiver<Request>, doorbell: &OwnedFd) {
    drop_capabilities();
    block_all_signals();
    let mut stack = vec![0_u8; 32 << 10];
    let mut children: Vec<(Arc<OwnedFd>, Notice, Bill)> = Vec::new();
    loop {
        let mut waits: Vec<_> = core::iter::once(doorbell.as_fd())
            .chain(children.iter().map(|(handle, ..)| handle.as_fd()))
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        if poll(&mut waits, None).is_err() {
            std::thread::sleep(BREATH); // out of memory, or the limit of descriptors was lowered
            continue;
        }
        let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
        for i in (1..ready.len()).rev().filter(|i| ready[*i]) {
            let before = this_thread();
            let (handle, notice, bill) = children.swap_remove(i - 1);
            // Dead, and its numbers still its own: nobody signals it from here on.
            notice(Stage::Dead(wait_for(&handle, libc::WEXITED | libc::WNOWAIT)));
            wait_for(&handle, libc::WEXITED);
            notice(Stage::Gone);
            drop((handle, notice)); // which may be the last to hold its files
            bill.fetch_add(this_thread() - before, Relaxed);
        }
        let _ = rustix::io::read(doorbell, &mut [0_u8; 8]);
        for Request { descriptors, notice, bill, reply } in inbox.try_iter() {
            let before = this_thread();
            let child = spawn_child(
                executable.as_raw_fd(),
                descriptors.each_ref().map(AsRawFd::as_raw_fd),
                &mut stack,
            );
            if let Ok(child) = &child {
                notice(Stage::Started { pid: child.pid, handle: &child.handle });
                children.push((child.handle.clone(), notice, bill.clone()));
            }
            drop(descriptors);
            bill.fetch_add(this_thread() - before, Relaxed);
            let _ = reply.send(child); // whoever asked may have given up; the child is then dropped
        }
    }
}

/// Gives up this thread's capabilities. Without any, or without the right to, it has nothing to give up.
fn drop_capabilities() {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let none = [0_u32; 6];
    // SAFETY: `capset` reads a header and two `__user_cap_data_struct`, eight and 24 bytes: both arrays live.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    debug_assert_eq!(result, 0, "giving up capabilities never needs one");
}

/// Signals are for the monitor's other threads, and children inherit the mask.
fn block_all_signals() {
    // SAFETY: a zeroed set is a set; `sigfillset` and `pthread_sigmask` are given one that lives.
    unsafe {
        let mut all: libc::sigset_t = core::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, core::ptr::null_mut());
    }
}

/// What the child is given, and the error that it leaves if it cannot execute.
struct Start {
    executable: RawFd,
    descriptors: [RawFd; 6],
    parent: i32,
    errno: i32,
}

fn spawn_child(executable: RawFd, descriptors: [RawFd; 6], stack: &mut [u8]) -> io::Result<Child> {
    let mut start =
        Start { executable, descriptors, parent: rustix::process::getpid().as_raw_nonzero().get(), errno: 0 };
    let mut handle: RawFd = -1;
    let top = stack.as_mut_ptr_range().end.map_addr(|a| a & !15);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    // SAFETY: `clone` needs a stack of its own for the child and a function that keeps to it.
    // 1. Stack: `stack` is 32 KiB, not otherwise used, and CLONE_VFORK keeps this thread, and with it the
    //    buffer, waiting until the child has executed or is gone.
    // 2. The function makes only system calls and touches only `start`, which lives as long, too.
    // 3. CLONE_PIDFD stores to `handle`, which is an `int` that lives.
    // Exit signal 0 lasts until the child executes, which sets SIGCHLD: an embedding program that waits for any child
    // can see sandboxes (README.md says so).
    let pid = unsafe { libc::clone(child, top.cast(), flags, (&raw mut start).cast(), &raw mut handle) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `from_raw_fd` needs a descriptor that nobody else owns: the kernel has just made it for us.
    let handle = Arc::new(unsafe { OwnedFd::from_raw_fd(handle) });
    if start.errno != 0 {
        wait_for(&handle, libc::WEXITED);
        return Err(io::Error::from_raw_os_error(start.errno));
    }
    Ok(Child { pid, handle })
}

/// First descriptor above the ones that a sandbox has; the executable's, until it executes.
const EXECUTABLE_FD: RawFd = 9;

/// The child, on its own stack but in the monitor's memory: only system calls, no locks, no allocation.
extern "C" fn child(start: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the pointer is to the `Start` of `spawn_child`, which waits for us and so does not touch it.
    let start = unsafe { &mut *start.cast::<Start>() };
    // SAFETY: all calls are system calls with integers, or with pointers to memory that lives: the empty path and
    // the argument vectors are statics or locals. None touches the monitor's descriptors: CLONE_FILES is not set.
    unsafe {
        let failed = || *libc::__errno_location();
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        {
            start.errno = failed();
            return 1;
        }
        if libc::getppid() != start.parent {
            return 1; // the monitor died before the kernel knew that we go with it
        }
        // A guest's sleep is to end when it should, not up to 50 us later; the vCPU threads inherit this.
        libc::prctl(libc::PR_SET_TIMERSLACK, 1);
        // 0 would not keep a core handler behind a pipe from running on what the guest wrote; 1 does (core(5)).
        let no_core = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
        if libc::setrlimit(libc::RLIMIT_CORE, &no_core) != 0 {
            start.errno = failed();
            return 1;
        }
        // Out of the way of 3 to 9 first, then into place.
        let high = |fd| libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 16);
        let files = start.descriptors.map(high);
        let executable = high(start.executable);
        if executable < 0 || files.iter().any(|file| *file < 0) {
            start.errno = failed();
            return 1;
        }
        for (fd, file) in (3..).zip(files) {
            if libc::dup2(file, fd) < 0 {
                start.errno = failed();
                return 1;
            }
        }
        if libc::dup3(executable, EXECUTABLE_FD, libc::O_CLOEXEC) < 0 {
            start.errno = failed();
            return 1;
        }
        if libc::syscall(libc::SYS_close_range, 0, 2, 0) != 0
            || libc::syscall(libc::SYS_close_range, EXECUTABLE_FD + 1, libc::c_int::MAX, 0) != 0
        {
            start.errno = failed();
            return 1;
        }
        let arguments = [c"hv-sandbox".as_ptr(), core::ptr::null()];
        let environment: [*const libc::c_char; 1] = [core::ptr::null()];
        libc::syscall(
            libc::SYS_execveat,
            EXECUTABLE_FD,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        start.errno = failed();
        1
    }
}

/// A dead child's status; takes it, unless `options` has `WNOWAIT`.
fn wait_for(handle: &OwnedFd, options: libc::c_int) -> Death {
    // SAFETY: a zeroed `siginfo_t` is one; `waitid` writes it, and it lives.
    let (code, status) = unsafe {
        let mut info: libc::siginfo_t = core::mem::zeroed();
        let id = handle.as_raw_fd() as libc::id_t;
        while libc::waitid(libc::P_PIDFD, id, &mut info, options | libc::__WALL) != 0 {
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return Death::Unknown;
            }
        }
        (info.si_code, info.si_status())
    };
    if code == libc::CLD_EXITED { Death::Exit(status) } else { Death::Signal(status) }
}
