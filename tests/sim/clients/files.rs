//! A client's journal on the simulated disk.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use cluster_client::journal::{JournalFile, JournalFiles};
use cluster_server::disk::{DiskFile, FileSystem, Open};

use crate::sim::disk::SimDisk;

#[derive(Debug)]
struct OnDisk(Arc<dyn DiskFile>);

impl JournalFiles for SimDisk {
    fn lock(&self, path: &Path) -> io::Result<Arc<dyn JournalFile>> {
        Ok(Arc::new(OnDisk(FileSystem::lock(self, path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn JournalFile>> {
        let file = match FileSystem::open(self, path, Open::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => FileSystem::open(self, path, Open::New)?,
            opened => opened?,
        };
        Ok(Arc::new(OnDisk(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        FileSystem::rename(self, from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        FileSystem::sync_directory(self, path)
    }
}

impl JournalFile for OnDisk {
    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.0.len()? as usize];
        let read = self.0.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.0.write_vectored_at(&[IoSlice::new(bytes)], offset)?;
            bytes = &bytes[written..];
            offset += written as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }
}
