//! AdamW's moments as a safetensors file: `m.NAME` and `v.NAME` for each weight that is trained, one after the other.
//!
//! The moments are twice as large as the model, so they are never copied as a whole.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use aha_compute::ops::adamw::{AdamW, StatePlace};
use aha_compute::{Params, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::rundir::write_file_with;

/// Longest header that is read; a name takes about a hundred bytes.
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// Numbers that are converted at a time.
const CHUNK_LEN: usize = 16 << 10;
/// Bytes of a number.
const F32: usize = size_of::<f32>();

/// Writes the moments.
pub(super) fn write(path: &Path, optimizer: &AdamW, params: &Params) -> Result<()> {
    let moments = || {
        params.trained().flat_map(|id| {
            let (m, v) = optimizer.moments(id);
            [("m", m), ("v", v)].map(|(kind, moment)| (name(kind, params.name(id)), moment))
        })
    };
    let mut header = Map::new();
    let mut start = 0;
    for (name, moment) in moments() {
        let end = start + moment.len() * F32;
        let info = json!({"dtype": "F32", "shape": moment.shape(), "data_offsets": [start, end]});
        header.insert(name, info);
        start = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    write_file_with(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        moments().try_for_each(|(_, moment)| write_values(out, &moment.host()))
    })
}

/// Reads the moments of an optimizer that has made `steps` steps, to this place.
pub(super) fn read(path: &Path, params: &Params, steps: u64, place: StatePlace) -> Result<AdamW> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut file = Moments::open(file).map_err(|error| damaged(path, error))?;
    let mut optimizer = AdamW::placed(params, place);
    for id in params.trained() {
        let (m, v) = optimizer.moments_mut(id);
        for (kind, moment) in [("m", m), ("v", v)] {
            let name = name(kind, params.name(id));
            file.read(&name, moment).map_err(|error| damaged(path, error))?;
        }
    }
    optimizer.set_step_count(steps);
    Ok(optimizer)
}

fn name(kind: &str, weight: &str) -> String {
    format!("{kind}.{weight}")
}

fn damaged(path: &Path, error: io::Error) -> Error {
    Error::input(format!("`{}` can't be read: {error}", path.display()))
}

/// A file of moments, whose header is read.
struct Moments {
    file: BufReader<File>,
    tensors: HashMap<String, Place>,
    /// Where the numbers begin.
    data_start: u64,
}

/// Where a moment is, from the beginning of the numbers.
#[derive(Deserialize)]
struct Place {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl Moments {
    fn open(file: File) -> io::Result<Moments> {
        let file_bytes = file.metadata()?.len();
        let mut file = BufReader::new(file);
        let mut header_bytes = [0; 8];
        file.read_exact(&mut header_bytes)?;
        let header_bytes = u64::from_le_bytes(header_bytes);
        if header_bytes > HEADER_BYTES_MAX.min(file_bytes) {
            return Err(io::Error::other(format!("a header of {header_bytes} bytes")));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header)?;
        let tensors = serde_json::from_slice(&header).map_err(io::Error::other)?;
        Ok(Moments { file, tensors, data_start: 8 + header_bytes })
    }

    fn read(&mut self, name: &str, moment: &mut Tensor) -> io::Result<()> {
        let place = self
            .tensors
            .get(name)
            .ok_or_else(|| io::Error::other(format!("`{name}` is missing")))?;
        let (start, end) = place.data_offsets;
        let is_fit = place.dtype == "F32"
            && place.shape == moment.shape()
            && end.checked_sub(start) == Some((moment.len() * F32) as u64);
        if !is_fit {
            return Err(io::Error::other(format!("`{name}` has another shape than its weight")));
        }
        let at = self.data_start.checked_add(start).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.file.seek(SeekFrom::Start(at))?;
        moment.write_with(|values| read_values(&mut self.file, values))
    }
}

fn write_values(out: &mut impl Write, values: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(CHUNK_LEN * F32);
    for chunk in values.chunks(CHUNK_LEN) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|x| x.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn read_values(from: &mut impl Read, values: &mut [f32]) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK_LEN * F32];
    for chunk in values.chunks_mut(CHUNK_LEN) {
        let bytes = &mut bytes[..chunk.len() * F32];
        from.read_exact(bytes)?;
        for (value, bytes) in chunk.iter_mut().zip(bytes.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use aha_compute::Device;
    use aha_compute::Grads;
    use aha_compute::ops::adamw::Hyper;

    use super::*;

    /// Two weights, one longer than what is converted at a time, and an optimizer that has made a step.
    fn trained() -> (Params, AdamW) {
        let device = Device::cpu(1);
        let mut params = Params::default();
        for (name, shape) in [("matrix", &[130, 257][..]), ("vector", &[37])] {
            params.push(name, Tensor::zeros(&device, shape));
        }
        let mut grads = Grads::zeros(&device, &params);
        for id in params.ids() {
            let gradient = grads.get_mut(id).as_mut_slice();
            gradient.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 * 0.37).sin());
        }
        let mut optimizer = AdamW::new(&params);
        let hyper = Hyper { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 };
        optimizer.step(&mut params, &grads, &hyper, 1.0);
        (params, optimizer)
    }

    #[test]
    fn moments_come_back_as_they_were() {
        let (params, optimizer) = trained();
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("optimizer.safetensors");
        write(&path, &optimizer, &params).unwrap();
        let again = read(&path, &params, 7, StatePlace::Device).unwrap();
        assert_eq!(again.step_count(), 7);
        for id in params.ids() {
            let [saved, read] = [&optimizer, &again].map(|optimizer| {
                let (m, v) = optimizer.moments(id);
                (m.as_slice(), v.as_slice())
            });
            assert_eq!(saved, read, "{}", params.name(id));
        }
        // Others read it too.
        let bytes = fs_err::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("v.matrix").unwrap().shape(), [130, 257]);
    }

    #[test]
    fn a_file_that_is_cut_or_of_another_model_is_an_error() {
        let (params, optimizer) = trained();
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("optimizer.safetensors");
        write(&path, &optimizer, &params).unwrap();
        let bytes = fs_err::read(&path).unwrap();
        for len in [0, 7, 8, 100, bytes.len() - 1] {
            fs_err::write(&path, &bytes[..len]).unwrap();
            assert!(read(&path, &params, 1, StatePlace::Device).is_err(), "cut to {len} bytes");
        }
        fs_err::write(&path, [&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat()).unwrap();
        assert!(
            read(&path, &params, 1, StatePlace::Device).is_err(),
            "a header longer than the file"
        );
        fs_err::write(&path, &bytes).unwrap();
        let mut other = Params::default();
        other.push("matrix", Tensor::zeros(&Device::cpu(1), &[257, 130]));
        let error = read(&path, &other, 1, StatePlace::Device).unwrap_err().to_string();
        assert!(error.contains("`m.matrix` has another shape"), "{error}");
    }
}
