//! Curves as TensorBoard event files, which need neither TensorFlow nor a protobuf compiler.
//!
//! # Format
//! A file is a row of records: the length as `u64`, the masked CRC of those eight bytes, the bytes, and the
//! masked CRC of those (TensorFlow, `core/lib/io/record_writer.cc`); all of it little-endian. The CRC is
//! CRC-32C; `mask(crc) = ((crc >> 15) | (crc << 17)) + 0xa282ead8`. Each record is an `Event` in protobuf
//! (`core/util/event.proto`, `core/framework/summary.proto`), of which these fields are written:
//!
//! | message | field | number | type |
//! | --- | --- | --- | --- |
//! | `Event` | `wall_time`, in seconds since 1970 | 1 | double |
//! | `Event` | `step` | 2 | int64 |
//! | `Event` | `file_version`, of the first event alone | 3 | string |
//! | `Event` | `summary` | 5 | `Summary` |
//! | `Summary` | `value` | 1 | `Summary.Value`, repeated |
//! | `Summary.Value` | `tag` | 1 | string |
//! | `Summary.Value` | `simple_value` | 2 | float |

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Report;
use super::ask::Num;
use super::facts::Eval;

/// The first event of a file.
const VERSION: &str = "brain.Event:2";

/// Wire types of protobuf.
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const BYTES: u8 = 2;
const FIXED_32: u8 = 5;

/// A value of a tag at a step.
#[derive(Clone, Debug, PartialEq)]
struct Scalar {
    step: u64,
    tag: String,
    at_us: i64,
    value: f64,
}

/// The content of each file, with the folder that it goes to: one for each stage, named after it, and one for
/// each model of an evaluation, `STAGE/MODEL`. TensorBoard shows folders as runs.
pub fn files(report: &Report) -> BTreeMap<PathBuf, Vec<u8>> {
    let began_us = report.facts.about.started_at_us;
    let mut scalars: BTreeMap<PathBuf, Vec<Scalar>> = BTreeMap::new();
    for curves in &report.curves {
        let of_stage = scalars.entry(PathBuf::from(folder(&curves.stage))).or_default();
        for (name, points) in &curves.series {
            of_stage.extend(points.iter().map(|point| Scalar {
                step: point.step,
                tag: name.clone(),
                at_us: point.at_us,
                value: point.value,
            }));
        }
    }
    let at_us = report.facts.about.last_at_us.unwrap_or(began_us);
    for eval in &report.facts.evals {
        let place = PathBuf::from(folder(&eval.stage)).join(folder(&eval.model));
        scalars.entry(place).or_default().extend(of_eval(eval, at_us));
    }
    let write = |(place, scalars)| (place, events(began_us, scalars));
    scalars.into_iter().map(write).collect()
}

/// The folder of a stage or model. A table says what they are called, and a name must not lead elsewhere.
fn folder(name: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect()
}

/// An evaluation has no steps: its figures are at step 0, and those by the number of samples at that number.
fn of_eval(eval: &Eval, at_us: i64) -> Vec<Scalar> {
    let scalar = |step: u64, name: &str, value: Num| Scalar {
        step,
        tag: format!("{}/{name}", eval.dataset),
        at_us,
        value: value.0,
    };
    let figures = [
        ("pass_at_1", Some(eval.pass_at_1)),
        ("pass_at_k", Some(eval.pass_at_k)),
        ("cons_at_k", eval.cons_at_k),
        ("weighted_cons_at_k", eval.weighted_cons_at_k),
        ("bon_at_k", eval.bon_at_k),
        ("rating", eval.rating),
        ("completion_len_tokens_mean", Some(eval.completion_len_tokens_mean)),
        ("truncated_share", eval.truncated_share),
        ("answered_share", eval.answered_share),
    ];
    let figures = figures.into_iter().filter_map(|(name, value)| Some(scalar(0, name, value?)));
    let by_samples = [
        ("pass_at_ks", Some(&eval.pass_at_ks)),
        ("cons_at_ks", eval.cons_at_ks.as_ref()),
        ("weighted_cons_at_ks", eval.weighted_cons_at_ks.as_ref()),
        ("bon_at_ks", eval.bon_at_ks.as_ref()),
    ];
    let by_samples = by_samples.into_iter().flat_map(|(name, values)| {
        let values = values.into_iter().flatten().copied();
        eval.ks.iter().zip(values).map(move |(k, value)| scalar(*k, name, value))
    });
    figures.chain(by_samples).collect()
}

/// A file: its version, then an event for each scalar, by step and tag.
fn events(began_us: i64, mut scalars: Vec<Scalar>) -> Vec<u8> {
    scalars.sort_by(|a, b| (a.step, &a.tag).cmp(&(b.step, &b.tag)));
    let mut file = Vec::new();
    let mut version = wall_time(began_us);
    field(&mut version, 3, VERSION.as_bytes());
    record(&mut file, &version);
    for scalar in scalars {
        let mut value = Vec::new();
        field(&mut value, 1, scalar.tag.as_bytes());
        key(&mut value, 2, FIXED_32);
        value.extend((scalar.value as f32).to_le_bytes());
        let mut summary = Vec::new();
        field(&mut summary, 1, &value);
        let mut event = wall_time(scalar.at_us);
        key(&mut event, 2, VARINT);
        varint(&mut event, scalar.step);
        field(&mut event, 5, &summary);
        record(&mut file, &event);
    }
    file
}

/// The beginning of an event.
fn wall_time(at_us: i64) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, 1, FIXED_64);
    event.extend((at_us as f64 / 1e6).to_le_bytes());
    event
}

fn key(out: &mut Vec<u8>, number: u8, wire_type: u8) {
    out.push((number << 3) | wire_type);
}

fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    key(out, number, BYTES);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// Seven bits a byte, the lowest first; all but the last have their highest bit set.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn record(out: &mut Vec<u8>, data: &[u8]) {
    let len = (data.len() as u64).to_le_bytes();
    out.extend(len);
    out.extend(masked_crc(&len).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), RFC 3720 appendix B.4.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0_u32, |crc, byte| (crc >> 8) ^ CRC_TABLE[usize::from(crc as u8 ^ byte)])
}

/// The remainder of each byte; the polynomial's bits in reverse.
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of RFC 3720, appendix B.4, and the usual check.
    #[test]
    fn the_crc_is_castagnolis() {
        let ascending: Vec<u8> = (0..32).collect();
        let cases: [(&[u8], u32); 5] = [
            (b"123456789", 0xe306_9283),
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (b"", 0),
        ];
        for (data, crc) in cases {
            assert_eq!(crc32c(data), crc, "{data:?}");
        }
    }

    /// Every event file that TensorFlow has written begins with these twelve bytes: 24, and its masked CRC.
    #[test]
    fn a_file_begins_as_tensorflow_begins_one() {
        let file = events(1_500_000, Vec::new());
        assert_eq!(&file[..12], b"\x18\0\0\0\0\0\0\0\xa3\x7fK\"");
        assert_eq!(&file[12..21], b"\x09\0\0\0\0\0\0\xf8\x3f");
        assert_eq!(&file[21..36], b"\x1a\x0dbrain.Event:2");
        assert_eq!(file.len(), 40);
    }

    #[test]
    fn a_scalar_has_the_bytes_that_protobuf_gives_it() {
        let scalar = Scalar { step: 300, tag: "kl".to_owned(), at_us: 2_000_000, value: 0.5 };
        let file = events(0, vec![scalar]);
        let event = &file[40 + 12..file.len() - 4];
        let expected =
            b"\x09\0\0\0\0\0\0\0\x40\x10\xac\x02\x2a\x0b\x0a\x09\x0a\x02kl\x15\0\0\0\x3f";
        assert_eq!(event, expected);
    }

    #[test]
    fn an_evaluation_has_its_figures_by_the_number_of_samples() {
        let eval = serde_json::json!({
            "stage": "s", "model": "m", "dataset": "sums", "problem_count": 2, "k": 2, "pass_at_1": 0.5,
            "pass_at_k": 1.0, "bon_at_k": 0.75, "completion_len_tokens_mean": 3.0,
            "ks": [1, 2], "pass_at_ks": [0.5, 1.0], "bon_at_ks": [0.5, 0.75],
        });
        let scalars = of_eval(&serde_json::from_value(eval).unwrap(), 0);
        let of = |tag: &str| -> Vec<(u64, f64)> {
            let own = scalars.iter().filter(|scalar| scalar.tag == tag);
            own.map(|scalar| (scalar.step, scalar.value)).collect()
        };
        assert_eq!(of("sums/bon_at_k"), [(0, 0.75)]);
        assert_eq!(of("sums/pass_at_ks"), [(1, 0.5), (2, 1.0)]);
        assert_eq!(of("sums/bon_at_ks"), [(1, 0.5), (2, 0.75)]);
        assert_eq!((of("sums/cons_at_k"), of("sums/cons_at_ks")), (vec![], vec![]));
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        assert_eq!(folder("student_zero"), "student_zero");
        assert_eq!(folder("../../x"), "______x");
    }

    #[test]
    fn events_are_in_order_of_steps() {
        let scalar = |step, tag: &str| Scalar { step, tag: tag.to_owned(), at_us: 0, value: 0.0 };
        let shuffled = vec![scalar(2, "a"), scalar(1, "b"), scalar(1, "a")];
        let sorted = vec![scalar(1, "a"), scalar(1, "b"), scalar(2, "a")];
        assert_eq!(events(0, shuffled), events(0, sorted));
    }
}
