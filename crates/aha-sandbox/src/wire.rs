//! A job on its way to its keeper, and the report on its way back.
//!
//! A request is the length of its header in 8 bytes, the header as JSON, then the bytes of each file and
//! of the input. A report is JSON up to the end of the stream.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::job::{Exit, File, Isolation, Job, Limits, Stdin};

/// Largest header that is read.
const HEADER_BYTES_MAX: u64 = 1 << 20;

#[derive(Deserialize, Serialize)]
struct Header {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    /// Name, whether it is a program, length.
    files: Vec<(String, bool, usize)>,
    input: Input,
    folders: Vec<PathBuf>,
    limits: Limits,
    isolation: Isolation,
}

/// A job's [`Stdin`], the bytes of which come later.
#[derive(Deserialize, Serialize)]
enum Input {
    Bytes(usize),
    Channel,
    Dialogue,
}

/// How a job ended, as its keeper says.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    Ended { exit: Exit, cpu_us: u64, wall_us: u64 },
    Refused { layer: String, why: String },
}

pub fn write_job(to: &mut impl Write, job: &Job) -> io::Result<()> {
    let files = job.files.iter().map(|f| (f.name.clone(), f.is_program, f.bytes.len())).collect();
    let header = Header {
        argv: job.argv.clone(),
        env: job.env.clone(),
        files,
        input: match &job.stdin {
            Stdin::Bytes(bytes) => Input::Bytes(bytes.len()),
            Stdin::Channel => Input::Channel,
            Stdin::Dialogue => Input::Dialogue,
        },
        folders: job.folders.clone(),
        limits: job.limits.clone(),
        isolation: job.isolation,
    };
    let header = serde_json::to_vec(&header)?;
    to.write_all(&(header.len() as u64).to_le_bytes())?;
    to.write_all(&header)?;
    for file in &job.files {
        to.write_all(&file.bytes)?;
    }
    if let Stdin::Bytes(bytes) = &job.stdin {
        to.write_all(bytes)?;
    }
    Ok(())
}

pub fn read_job(from: &mut impl Read) -> io::Result<Job> {
    let mut len = [0; 8];
    from.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    if len > HEADER_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the header is too long"));
    }
    let header: Header = serde_json::from_slice(&read_bytes(from, len as usize)?)?;
    let mut files = Vec::with_capacity(header.files.len());
    for (name, is_program, len) in header.files {
        files.push(File { name, is_program, bytes: read_bytes(from, len)? });
    }
    let stdin = match header.input {
        Input::Bytes(len) => Stdin::Bytes(read_bytes(from, len)?),
        Input::Channel => Stdin::Channel,
        Input::Dialogue => Stdin::Dialogue,
    };
    Ok(Job {
        argv: header.argv,
        env: header.env,
        files,
        stdin,
        folders: header.folders,
        limits: header.limits,
        isolation: header.isolation,
    })
}

fn read_bytes(from: &mut impl Read, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_arrives_as_it_was_sent() {
        let mut job = Job::new(["./a", "b"]);
        job.files = vec![
            File { name: "a".to_owned(), bytes: vec![0, 255], is_program: true },
            File { name: "c".to_owned(), bytes: Vec::new(), is_program: false },
        ];
        job.stdin = Stdin::Bytes(b"in".to_vec());
        job.isolation = Isolation::Weak;
        let mut bytes = Vec::new();
        write_job(&mut bytes, &job).unwrap();
        let got = read_job(&mut bytes.as_slice()).unwrap();
        assert_eq!(format!("{got:?}"), format!("{job:?}"));
        assert!(read_job(&mut &bytes[..bytes.len() - 1]).is_err());
    }
}
