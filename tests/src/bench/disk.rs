//! The yardstick for a durable journal: the same bytes in the same batches, written into a preallocated file, each
//! batch made safe by fdatasync before the next.
//!
//! Called by `durable` with what our server's journal did in the run before.

use std::fs::OpenOptions;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Instant;

/// Bytes of the preallocated file; the writing wraps around.
const FILE: usize = 64 << 20;

/// Records a second of `records` records of `size` bytes, so many in a batch.
///
/// # Errors
/// The disk fails.
pub fn append(folder: &Path, records: usize, size: usize, batch: usize) -> anyhow::Result<f64> {
    let path = folder.join("append.bin");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&path)?;
    // Zeros that are really there: no allocation is left for the measured part.
    let zeros = vec![0; 1 << 20];
    for _ in 0..FILE / zeros.len() {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    let bytes = vec![b'x'; size * batch.max(1)];
    let mut at = 0;
    let begun = Instant::now();
    let mut written = 0;
    while written < records {
        if at + bytes.len() > FILE {
            file.seek(SeekFrom::Start(0))?;
            at = 0;
        }
        file.write_all(&bytes)?;
        file.sync_data()?;
        at += bytes.len();
        written += batch.max(1);
    }
    let seconds = begun.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let written = written as f64;
    Ok(written / seconds)
}
