//! `lora`: low-rank adapters in place of trained weights.

use aha_model::Target;

use super::reader::{Field, Reader, section, section_fields};
use super::source::{Node, Value};
use super::write::Out;

section! {
    /// Low-rank adapters, trained while the weights are frozen (LoRA, arXiv:2106.09685). Each targeted weight counts as
    /// `w + scale * b * a`, of which `a` and `b` are trained. They want a larger learning rate than the weights do,
    /// about ten times. The stage leaves its adapter in peft's layout in `adapters/NAME` of the run directory, and the
    /// model with the adapter merged into its weights in `models/NAME`, as without. A reward model's head is trained
    /// beside them.
    pub struct Lora {
        /// Rows of `a` and columns of `b`.
        pub rank: u32 = 16, "from 1 to 4096" |n| (1..=4096).contains(n);
        /// The scale is `alpha / rank`.
        pub alpha: f64 = 32.0, "above 0" |x| *x > 0.0;
        /// The projections of each layer that have adapters.
        pub targets: Targets = Targets::default();
        /// Whether the scale is `alpha / sqrt(rank)` instead, which suits large ranks (rsLoRA, Kalajdzievski 2023).
        pub rslora: bool = false;
    }
}

section_fields!(Lora);

impl From<&Lora> for aha_model::Lora {
    fn from(lora: &Lora) -> aha_model::Lora {
        aha_model::Lora {
            rank: lora.rank as usize,
            alpha: lora.alpha,
            targets: lora.targets.0.clone(),
            is_rank_stabilised: lora.rslora,
        }
    }
}

/// The word for all of them.
const ALL: &str = "all-linear";

/// Which projections have adapters, in the order of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets(pub Vec<Target>);

impl Default for Targets {
    fn default() -> Targets {
        Targets(Target::ALL.to_vec())
    }
}

fn one_of() -> String {
    let names = Target::ALL.map(|target| format!("\"{}\"", target.name()));
    format!("one of {}", names.join(", "))
}

impl Field for Targets {
    fn expects() -> String {
        format!("\"{ALL}\", or an array, each {}", one_of())
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        match &node.value {
            Value::String(word) if word == ALL => return Targets::default(),
            Value::Array(items) if !items.is_empty() => {
                let mut targets = Vec::new();
                for (idx, item) in items.iter().enumerate() {
                    let name = if let Value::String(name) = &item.value { name } else { "" };
                    match Target::from_name(name) {
                        Some(target) => targets.push(target),
                        None => {
                            reader.wrong_type(item, &format!("{path}[{idx}]"), &one_of());
                            return base;
                        }
                    }
                }
                targets.sort_unstable();
                targets.dedup();
                return Targets(targets);
            }
            _ => {}
        }
        reader.wrong_type(node, path, &Self::expects());
        base
    }
    fn write(&self) -> Option<Out> {
        if *self == Targets::default() {
            return Some(Out::string(ALL));
        }
        Some(Out::Array(self.0.iter().map(|target| Out::string(target.name())).collect()))
    }
}
