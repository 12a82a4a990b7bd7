//! System calls that the standard library doesn't have, as functions that return [`io::Result`].

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// The kernel's `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A fork into new namespaces: 0 in the child. The caller must have one thread only.
pub fn clone(flags: libc::c_int) -> io::Result<libc::pid_t> {
    let flags = (flags | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: no stack, no thread pointer and no pointers to ids are given, so this is a fork; with one
    // thread no lock can be held by another at this moment.
    check(unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) })
        .map(|pid| pid as libc::pid_t)
}

/// A pipe: its reading end, its writing end; closed at exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for two descriptors, which nobody else owns yet.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC).into())?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// Writes one byte, which says "go on".
pub fn write_byte(to: &OwnedFd) -> io::Result<()> {
    // SAFETY: one byte is read from a buffer that has one.
    check(unsafe { libc::write(to.as_raw_fd(), [1_u8].as_ptr().cast(), 1) } as libc::c_long)?;
    Ok(())
}

/// Waits for such a byte; an error where the other end is closed instead.
pub fn read_byte(from: &OwnedFd) -> io::Result<()> {
    let mut byte = [0_u8];
    // SAFETY: one byte is written to a buffer that has room for one.
    let read = unsafe { libc::read(from.as_raw_fd(), byte.as_mut_ptr().cast(), 1) } as libc::c_long;
    match check(read)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Closes a descriptor that nothing here owns.
pub fn close(fd: RawFd) -> io::Result<()> {
    // SAFETY: callers close standard output and error of a keeper, which writes to neither.
    check(unsafe { libc::close(fd) }.into())?;
    Ok(())
}

/// A file, folder or device as a place only: nothing of it is read.
pub fn open_place(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the path ends with a zero byte; the new descriptor is owned by nobody else.
    unsafe {
        let fd = check(libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A copy of the mount at a place, attached nowhere yet.
pub fn clone_tree(place: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC as u32
        | (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE) as u32;
    // SAFETY: the path is an empty string; the new descriptor is owned by nobody else.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_open_tree, place.as_raw_fd(), c"".as_ptr(), flags))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Makes a mount and those in it read-only, without set-uid programs and, unless it is one, devices.
pub fn make_read_only(tree: &OwnedFd, is_device: bool) -> io::Result<()> {
    let devices = if is_device { 0 } else { MOUNT_ATTR_NODEV };
    let attr = MountAttr {
        attr_set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | devices,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    set_mount_attr(tree.as_raw_fd(), c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, &attr)
}

/// Makes the mount at `/` read-only, but not those in it.
pub fn make_root_read_only() -> io::Result<()> {
    let attr = MountAttr {
        attr_set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    set_mount_attr(libc::AT_FDCWD, c"/", 0, &attr)
}

fn set_mount_attr(fd: RawFd, path: &CStr, flags: libc::c_int, attr: &MountAttr) -> io::Result<()> {
    let (call, size) = (libc::SYS_mount_setattr, size_of::<MountAttr>());
    // SAFETY: the path ends with a zero byte, the structure is the kernel's, with its size.
    check(unsafe {
        libc::syscall(call, fd, path.as_ptr(), flags, attr as *const MountAttr, size)
    })?;
    Ok(())
}

/// Attaches a tree at a path.
pub fn attach(tree: &OwnedFd, path: &CStr) -> io::Result<()> {
    // SAFETY: both paths end with a zero byte.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Mounts a file system in memory.
pub fn mount_tmpfs(path: &CStr, options: &CStr) -> io::Result<()> {
    let (kind, flags) = (c"tmpfs".as_ptr(), libc::MS_NOSUID | libc::MS_NODEV);
    // SAFETY: every string ends with a zero byte.
    check(
        unsafe { libc::mount(kind, path.as_ptr(), kind, flags, options.as_ptr().cast()) }.into(),
    )?;
    Ok(())
}

/// Keeps mounts made here from being seen outside.
pub fn make_mounts_private() -> io::Result<()> {
    let none = std::ptr::null();
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the path ends with a zero byte; the others may be null for this change.
    check(unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) }.into())?;
    Ok(())
}

/// Makes the current folder, which must be a mount, the root, and lets the old one go.
pub fn pivot_to_current_folder() -> io::Result<()> {
    let here = c".".as_ptr();
    // SAFETY: the paths end with a zero byte. The old root is on top of the new one afterwards, and is
    // what the second call takes away.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, here, here))?;
        check(libc::umount2(here, libc::MNT_DETACH).into())?;
    }
    std::env::set_current_dir("/")
}

/// `prctl` with one number.
pub fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used here take numbers only.
    check(unsafe { libc::prctl(option, value, zero, zero, zero) }.into())?;
    Ok(())
}

/// Becomes that user and group for good, without further groups, keeping the capabilities that there are
/// in the current user namespace.
pub fn become_user(id: u32) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1)?;
    // SAFETY: numbers only, and a null list of length 0.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()).into())?;
        check(libc::setresgid(id, id, id).into())?;
        check(libc::setresuid(id, id, id).into())?;
    }
    set_capabilities(true)
}

/// Makes every capability that is permitted effective, or gives all of them up, for programs started
/// later as well.
pub fn set_capabilities(is_kept: bool) -> io::Result<()> {
    let header = [CAPABILITY_VERSION_3, 0];
    // Effective, permitted, inheritable; twice, for 64 bits.
    let mut data = [0_u32; 6];
    if is_kept {
        // SAFETY: version 3 reads a header of two words and writes six.
        check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
        (data[0], data[3]) = (data[1], data[4]);
    } else {
        for capability in 0..64 {
            // The call fails past the last capability that the kernel knows.
            if prctl(libc::PR_CAPBSET_DROP, capability).is_err() {
                break;
            }
        }
    }
    // SAFETY: version 3 reads a header of two words and six more.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })?;
    Ok(())
}

/// Sets a limit of this process, soft and hard.
pub fn limit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure is the kernel's.
    check(unsafe { libc::setrlimit(resource, &limit) }.into())?;
    Ok(())
}

/// Puts `from` at the number `to`, where it stays open at exec.
pub fn move_fd(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: what was at `to` is closed; callers own standard input, output and error.
    check(unsafe { libc::dup2(from, to) }.into())?;
    Ok(())
}

/// Marks every descriptor from `first` on as closed at exec, or closes them.
pub fn close_from(first: libc::c_uint, at_exec: bool) -> io::Result<()> {
    let flags = if at_exec { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: numbers only; callers hold nothing open past `first` that they use again.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) })?;
    Ok(())
}

/// Waits for any child: its id and how it ended.
pub fn wait(pid: libc::pid_t) -> io::Result<(libc::pid_t, libc::c_int)> {
    loop {
        let mut status = 0;
        // SAFETY: the status is written, nothing else.
        match check(unsafe { libc::waitpid(pid, &mut status, libc::__WALL) }.into()) {
            Ok(pid) => return Ok((pid as libc::pid_t, status)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Processor time of children that were waited for, in microseconds.
pub fn children_cpu_us() -> u64 {
    // SAFETY: all zeros is a value of this structure, which the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    us(usage.ru_utime) + us(usage.ru_stime)
}

/// Kills a process, or with -1 all that may be killed.
pub fn kill(pid: libc::pid_t) {
    // SAFETY: numbers only. That it has ended already is what is wanted.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Waits until one of the descriptors can be read or is at its end, at most so long; which are.
pub fn poll<const N: usize>(fds: [RawFd; N], timeout_ms: i32) -> [bool; N] {
    let mut polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: the array holds N structures. Interrupted, the caller looks again.
    unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, timeout_ms) };
    polled.map(|p| p.revents != 0)
}

/// The effective user.
pub fn user() -> u32 {
    // SAFETY: takes nothing and can't fail.
    unsafe { libc::geteuid() }
}

/// The effective group.
pub fn group() -> u32 {
    // SAFETY: takes nothing and can't fail.
    unsafe { libc::getegid() }
}

/// A new session, so that no terminal is shared.
pub fn new_session() {
    // SAFETY: takes nothing; that there is one already is what is wanted.
    unsafe { libc::setsid() };
}

/// The unit of processor time in `/proc`.
pub fn ticks_per_s() -> u64 {
    // SAFETY: takes a number.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as u64 }
}

/// Names the host.
pub fn set_host_name(name: &str) -> io::Result<()> {
    // SAFETY: the length is the name's.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into())?;
    Ok(())
}

/// Ends this process without any cleaning up.
pub fn exit(code: i32) -> ! {
    // SAFETY: takes a number and doesn't return.
    unsafe { libc::_exit(code) }
}

/// Whether so much memory can be had in one piece.
pub fn can_map(len_bytes: u64) -> bool {
    let (access, kind) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory at a place of the kernel's choice; this process ends soon after.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len_bytes as usize, access, kind, -1, 0) };
    at != libc::MAP_FAILED
}

/// Whether a user namespace can be made from here.
pub fn can_make_namespace() -> bool {
    // SAFETY: takes a number.
    unsafe { libc::unshare(libc::CLONE_NEWUSER) == 0 }
}

/// Gives a program the reactions to signals that it expects: those of the system.
pub fn reset_signals() {
    // SAFETY: no handler of ours is replaced; Rust's runtime only ignores this one.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Becomes another program; what went wrong, if it returns.
pub fn exec(argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    if argv[0].is_null() {
        return io::Error::new(io::ErrorKind::InvalidInput, "there is no program");
    }
    // SAFETY: both lists end with a null pointer, and every text with a zero byte.
    unsafe { libc::execve(argv[0], argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}
