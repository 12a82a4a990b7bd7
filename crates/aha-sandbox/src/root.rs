//! The files that a program sees: the system's programs and libraries, read-only, and a folder in memory.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::sys;

/// The folder that a program may write to, and starts in.
pub const FOLDER: &str = "/tmp";

/// Folders of the system, where they are there.
const SYSTEM: [&str; 13] = [
    "/usr/bin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/include",
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/nix/store",
];

/// Devices that hold nothing and reach nothing. A shared mapping of `/dev/zero` is memory in no process.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];

/// Where the root is put together before it becomes the root; anything there is hidden meanwhile.
const BUILD_PLACES: [&CStr; 3] = [c"/tmp", c"/mnt", c"/var"];

/// Whether every program sees what is at that absolute path.
pub fn is_shown(path: &Path) -> bool {
    SYSTEM.iter().any(|known| path.starts_with(known))
}

/// Something of the machine that is shown at its own path.
pub enum Shown {
    /// A link, as it is.
    Link(PathBuf, PathBuf),
    /// A folder, file or device.
    Place { path: PathBuf, is_folder: bool, is_device: bool, place: OwnedFd },
}

/// Looks up what is to be shown. To be called in the new mount namespace.
pub fn find(folders: &[PathBuf]) -> io::Result<Vec<Shown>> {
    let mut shown = Vec::new();
    let system = SYSTEM.iter().map(PathBuf::from).filter(|path| path.symlink_metadata().is_ok());
    let devices = DEVICES.iter().map(PathBuf::from).filter(|path| path.exists());
    // What is in a folder that is shown is shown.
    let is_new = |path: &&PathBuf| !SYSTEM.iter().any(|known| path.starts_with(known));
    let folders = folders.iter().filter(is_new).cloned();
    for path in system.chain(folders).chain(devices) {
        let is_link = path.symlink_metadata()?.is_symlink();
        if is_link && SYSTEM.iter().any(|known| path == Path::new(known)) {
            shown.push(Shown::Link(path.clone(), fs::read_link(&path)?));
            continue;
        }
        let metadata = path.metadata()?;
        let is_device = path.starts_with("/dev");
        // A file that somebody has put in a device's place holds what others wrote to it.
        if is_device && !metadata.file_type().is_char_device() {
            continue;
        }
        let place = sys::open_place(&c_path(&path)?)?;
        shown.push(Shown::Place { path, is_folder: metadata.is_dir(), is_device, place });
    }
    Ok(shown)
}

/// Makes the root and enters it. Its folder takes so many bytes.
pub fn build(shown: &[Shown], folder_bytes: u64) -> io::Result<()> {
    // The mounts are copied first: what the new root is put over can't be reached afterwards.
    let trees = shown.iter().map(|shown| match shown {
        Shown::Link(..) => Ok(None),
        Shown::Place { is_device, place, .. } => {
            let tree = sys::clone_tree(place)?;
            sys::make_read_only(&tree, *is_device)?;
            Ok(Some(tree))
        }
    });
    let trees: Vec<Option<OwnedFd>> = trees.collect::<io::Result<_>>()?;
    let is_there = |place: &&&CStr| Path::new(&*place.to_string_lossy()).is_dir();
    let here = BUILD_PLACES.iter().find(is_there);
    let here = here.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no folder /tmp"))?;
    sys::mount_tmpfs(here, c"size=1m,nr_inodes=1k,mode=755")?;
    std::env::set_current_dir(&*here.to_string_lossy())?;
    for (shown, tree) in shown.iter().zip(&trees) {
        match shown {
            Shown::Link(path, target) => {
                let path = make_parents(path)?;
                std::os::unix::fs::symlink(target, path)?;
            }
            Shown::Place { path, is_folder, .. } => {
                let path = make_parents(path)?;
                match is_folder {
                    true => fs::create_dir_all(&path)?,
                    false => fs::write(&path, "")?,
                }
                if let Some(tree) = tree {
                    sys::attach(tree, &c_path(&path)?)?;
                }
            }
        }
    }
    fs::create_dir("tmp")?;
    // A file or folder takes an inode; so many fit that no program of good will runs out.
    let options = format!("size={folder_bytes},nr_inodes=4k,mode=700");
    sys::mount_tmpfs(c"tmp", &CString::new(options)?)?;
    sys::pivot_to_current_folder()?;
    sys::make_root_read_only()
}

/// The path below the current folder, with all folders above it.
fn make_parents(path: &Path) -> io::Result<PathBuf> {
    let below = path.strip_prefix("/").map_err(io::Error::other)?;
    if let Some(parent) = below.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(below.to_owned())
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
