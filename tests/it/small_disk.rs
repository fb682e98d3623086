//! Small file systems that a story makes for itself and can fill, cut off from power, or make read-only: on a loop file, or in memory.
//! They need root and the system's `mount`; where one cannot be made, the reason says why.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::ioctl::{Setter, ioctl, opcode};
use tempfile::TempDir;

/// `FS_IOC_SHUTDOWN` of ext4, xfs and f2fs; its argument says what happens to what is not written yet.
const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);

/// Neither data nor the journal are flushed: as if the power had gone.
const WITHOUT_FLUSH: u32 = 2;

/// A mounted file system. Dropping it unmounts it and removes its files, whatever happened to it.
pub(crate) struct SmallDisk {
    directory: TempDir,
    /// What is mounted, and how.
    mount: Vec<String>,
}

impl SmallDisk {
    /// A file system of this kind (`ext4`, `xfs`) on a loop file.
    ///
    /// # Errors
    /// Why this machine cannot.
    pub(crate) fn on_a_loop_file(kind: &str, bytes: u64) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let image = directory.path().join("image");
        File::create(&image).and_then(|file| file.set_len(bytes)).map_err(|error| error.to_string())?;
        let image = image.display().to_string();
        run(&[&format!("mkfs.{kind}"), "-q", &image])?;
        Self::mounted(directory, &["-o", "loop", "-t", kind, &image])
    }

    /// A file system in memory.
    ///
    /// # Errors
    /// Why this machine cannot.
    pub(crate) fn in_memory(bytes: u64) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        Self::mounted(directory, &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
    }

    fn mounted(directory: TempDir, mount: &[&str]) -> Result<Self, String> {
        let mount = mount.iter().map(ToString::to_string).collect();
        std::fs::create_dir(directory.path().join("mounted")).map_err(|error| error.to_string())?;
        let disk = Self { directory, mount };
        disk.mount().map(|()| disk)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    fn mount(&self) -> Result<(), String> {
        let mut command = vec!["mount"];
        command.extend(self.mount.iter().map(String::as_str));
        let path = self.path().display().to_string();
        command.push(&path);
        run(&command)
    }

    /// Takes the power away: what was not synced is gone, and every later operation fails until [`Self::power_on`].
    ///
    /// # Errors
    /// The kind of file system has no such thing.
    pub(crate) fn cut(&self) -> Result<(), String> {
        let root = File::open(self.path()).map_err(|error| error.to_string())?;
        // SAFETY: the kernel reads a u32 for this opcode, and writes nothing.
        unsafe { ioctl(&root, Setter::<SHUTDOWN, u32>::new(WITHOUT_FLUSH)) }.map_err(|error| format!("FS_IOC_SHUTDOWN: {error}"))
    }

    /// Mounts it again after a cut. Nobody may use it any more.
    ///
    /// # Errors
    /// It cannot be unmounted or mounted.
    pub(crate) fn power_on(&self) -> Result<(), String> {
        run(&["umount", &self.path().display().to_string()])?;
        self.mount()
    }

    /// Forbids all writing, or allows it again. Nobody may have a file open for writing.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn set_read_only(&self, read_only: bool) -> Result<(), String> {
        let option = if read_only { "remount,ro" } else { "remount,rw" };
        run(&["mount", "-o", option, &self.path().display().to_string()])
    }

    /// Leaves room for only so many bytes, by a file that takes all others.
    pub(crate) fn fill_up_to(&self, bytes_left: u64) -> PathBuf {
        let ballast = self.path().join("ballast");
        let file = File::create(&ballast).unwrap();
        // Whoever writes meanwhile takes room between the look and the deed: then it is looked again.
        for _ in 0..1_000 {
            file.set_len(0).unwrap();
            let statistics = rustix::fs::statvfs(self.path()).unwrap();
            let taken = (statistics.f_bavail * statistics.f_frsize).saturating_sub(bytes_left);
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken.max(1)) {
                Err(rustix::io::Errno::NOSPC) => {}
                result => {
                    result.unwrap();
                    return ballast;
                }
            }
        }
        panic!("no room stays free for long enough");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let path = self.path().display().to_string();
        if is_mounted(&self.path()) && run(&["umount", &path]).is_err() {
            // Somebody who is about to end has it open: it goes with the last of them.
            let _ = run(&["umount", "--lazy", &path]);
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

fn run(command: &[&str]) -> Result<(), String> {
    let output = Command::new(command[0]).args(&command[1..]).output().map_err(|error| format!("{}: {error}", command[0]))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
