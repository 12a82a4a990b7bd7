//! Checkpoints: everything that a training stage needs to go on exactly where it was.
//!
//! ```text
//! checkpoints/STAGE/step-000120/
//!   model/                  the policy, Hugging Face layout; with `lora` adapter/, its adapter in peft's layout
//!   reference/              the KL term's reference, where it isn't the model that the stage began with; likewise
//!   optimizer.safetensors   AdamW's moments: m.NAME and v.NAME
//!   critic/                 the critic, where there is one, Hugging Face layout
//!   critic_optimizer.safetensors
//!   position.json           step, versions, digests of the files above; written last
//! ```
//!
//! Data position and random state are functions of `step`, because randomness is addressed. A checkpoint is
//! written aside and renamed; rows that it has trained on are durable before. Files are written and read a
//! piece at a time: saving takes no memory that grows with the model.

mod optimizer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aha_compute::Device;
use aha_compute::ops::adamw::{AdamW, StatePlace};
use aha_model::save::SaveDtype;
use aha_model::{Head, Model, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models;
use crate::parts::{Parts, tables_of_training};
use crate::rl::ahead::ledger::Asked;
use crate::rl::draw::Seen;
use crate::rundir::{RunDir, aside, replace_dir, sha256_of_file, write_file};

/// The moments of the critic's optimizer.
const CRITIC_OPTIMIZER: &str = "critic_optimizer.safetensors";

/// Where a stage is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// The stage.
    pub stage: String,
    /// Steps done.
    pub step: u64,
    /// Optimizer steps done.
    pub version: u64,
    /// Updates of the optimizer's moments.
    pub optimizer_steps: u64,
    /// Updates of the moments of the critic's optimizer.
    #[serde(default)]
    pub critic_steps: u64,
    /// Optimizer step at which the policy last became the reference; 0: it is the stage's first model.
    pub reference_version: u64,
    /// Batches set aside because something wasn't a number.
    pub nan_batches: u32,
    /// Steps in a row that trained on nothing.
    pub steps_without_training: u32,
    /// How often each prompt that ever failed has failed.
    pub failures: BTreeMap<String, u32>,
    /// What is known of each prompt that was asked, where that decides which are drawn.
    #[serde(default)]
    pub seen: BTreeMap<String, Seen>,
    /// What was asked for and that no step had taken, where the sampler runs ahead of the learner.
    #[serde(default, skip_serializing_if = "Asked::is_empty")]
    pub asked: Asked,
    /// The parts of tables that the stage had written: what the weights were trained on is among them.
    #[serde(default)]
    pub parts: Parts,
    /// SHA-256 of every other file, by its path in the checkpoint.
    pub files: BTreeMap<String, String>,
}

/// What the weights of a checkpoint make a model with.
#[derive(Clone, Copy)]
pub enum Begun<'a> {
    /// Nothing else: a checkpoint has all of them, with this head.
    Anew(Head),
    /// The weights of this model, whose adapters are others by then.
    From(&'a Model),
}

impl<'a> Begun<'a> {
    /// How checkpoints of a stage are read that begins with this model.
    pub fn of(model: &'a Model) -> Begun<'a> {
        match model.lora() {
            Some(_) => Begun::From(model),
            None => Begun::Anew(if model.is_reward() { Head::Score } else { Head::Language }),
        }
    }

    fn load(self, path: &Path, device: &Device) -> Result<Arc<Model>> {
        let model = match self {
            Begun::Anew(head) => Model::load_with_head(path, device, head)?,
            Begun::From(model) => {
                let mut model = model.clone();
                model.restore_adapter(path)?;
                model
            }
        };
        Ok(Arc::new(model))
    }

    /// Where a checkpoint has the policy.
    fn policy(self, path: &Path) -> PathBuf {
        path.join(match self {
            Begun::Anew(_) => "model",
            Begun::From(_) => "adapter",
        })
    }
}

/// What a checkpoint holds.
pub struct Saved {
    /// The policy.
    pub model: Arc<Model>,
    /// The reference, where it isn't the stage's first model.
    pub reference: Option<Arc<Model>>,
    /// The optimizer.
    pub optimizer: AdamW,
    /// The critic and its optimizer.
    pub critic: Option<(Arc<Model>, AdamW)>,
    /// Where the stage is.
    pub position: Position,
}

/// What a checkpoint is made of.
pub struct Content<'a> {
    /// The policy.
    pub model: &'a Model,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The reference, where it isn't the stage's first model.
    pub reference: Option<&'a Model>,
    /// The optimizer.
    pub optimizer: &'a AdamW,
    /// The critic and its optimizer.
    pub critic: Option<(&'a Model, &'a AdamW)>,
    /// Where the stage is; `files` and what is new of `parts` are filled in here.
    pub position: Position,
}

/// Writes a checkpoint and removes all but the newest `keep` of the stage. Returns the parts of tables that it
/// stands on: the next one needn't read them again.
pub fn save(dir: &RunDir, content: &Content<'_>, keep: usize) -> Result<Parts> {
    dir.write(|| save_once(dir, content, keep))
}

fn save_once(dir: &RunDir, content: &Content<'_>, keep: usize) -> Result<Parts> {
    let stage = content.position.stage.clone();
    let parent = dir.checkpoints(&stage);
    fs_err::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
    let path = parent.join(name(content.position.step));
    let temporary = aside(&path);
    if temporary.exists() {
        fs_err::remove_dir_all(&temporary).map_err(Error::io("remove", &temporary))?;
    }
    fs_err::create_dir_all(&temporary).map_err(Error::io("create", &temporary))?;
    let save = |path: &Path, model: &Model| match model.lora() {
        Some(_) => models::save_adapter(path, model),
        None => models::save(path, model, content.tokenizer, SaveDtype::F32),
    };
    save(&Begun::of(content.model).policy(&temporary), content.model)?;
    if let Some(reference) = content.reference {
        save(&temporary.join("reference"), reference)?;
    }
    optimizer::write(
        &temporary.join("optimizer.safetensors"),
        content.optimizer,
        content.model.params(),
    )?;
    if let Some((critic, moments)) = content.critic {
        models::save(&temporary.join("critic"), critic, content.tokenizer, SaveDtype::F32)?;
        optimizer::write(&temporary.join(CRITIC_OPTIMIZER), moments, critic.params())?;
    }
    let parts = content.position.parts.clone().with(dir, &stage, &tables_of_training(&stage))?;
    let position = Position { parts, files: digests(&temporary)?, ..content.position.clone() };
    let text = serde_json::to_vec_pretty(&position)
        .map_err(|error| Error::bug(format!("a checkpoint's position has no JSON: {error}")))?;
    write_file(&temporary.join("position.json"), &text)?;
    replace_dir(&temporary, &path)?;
    prune(&parent, keep)?;
    Ok(position.parts)
}

/// Where what optimizers know is read to.
#[derive(Clone, Copy, Debug, Default)]
pub struct States {
    /// That of what the stage trains.
    pub policy: StatePlace,
    /// Its critic's.
    pub critic: StatePlace,
}

/// The stage's newest checkpoint that is whole, if it has one. One that is damaged is passed over with a warning,
/// and the one before is taken. Fails where rows that it stands on are lost.
pub fn newest(
    dir: &RunDir,
    stage: &str,
    device: &Device,
    begun: Begun<'_>,
    states: States,
) -> Result<Option<Saved>> {
    for (_, path) in list(&dir.checkpoints(stage))?.into_iter().rev() {
        match load(&path, device, begun, states) {
            Ok(saved) => {
                let hint = format!(
                    "put it back from a copy; or remove `{}`, and the stage begins again and makes the \
                     same rows and weights",
                    dir.checkpoints(stage).display()
                );
                saved.position.parts.check(dir, &hint)?;
                return Ok(Some(saved));
            }
            Err(error) => tracing::warn!(%error, path = %path.display(), "Checkpoint passed over."),
        }
    }
    Ok(None)
}

fn load(path: &Path, device: &Device, begun: Begun<'_>, states: States) -> Result<Saved> {
    let file = path.join("position.json");
    let bytes = fs_err::read(&file).map_err(Error::io("read", &file))?;
    let position: Position = serde_json::from_slice(&bytes).map_err(|error| {
        Error::input(format!("`{}` is not a checkpoint's position: {error}", file.display()))
    })?;
    let found = digests(path)?;
    if let Some((file, _)) =
        position.files.iter().find(|(file, digest)| found.get(*file) != Some(digest))
    {
        return Err(Error::input(format!(
            "`{}` is damaged: its digest differs",
            path.join(file).display()
        )));
    }
    let model = begun.load(&begun.policy(path), device)?;
    let reference = path.join("reference");
    let reference = reference.exists().then(|| begun.load(&reference, device)).transpose()?;
    let optimizer = optimizer::read(
        &path.join("optimizer.safetensors"),
        model.params(),
        position.optimizer_steps,
        states.policy,
    )?;
    let critic = path.join("critic");
    let critic = match critic.exists() {
        true => {
            let model = Model::load_with_head(&critic, device, Head::Score)?;
            let moments = path.join(CRITIC_OPTIMIZER);
            let steps = position.critic_steps;
            let moments = optimizer::read(&moments, model.params(), steps, states.critic)?;
            Some((Arc::new(model), moments))
        }
        false => None,
    };
    Ok(Saved { model, reference, optimizer, critic, position })
}

fn name(step: u64) -> String {
    format!("step-{step:06}")
}

/// Checkpoints in the order of their steps. What was left half-written has a hidden name.
fn list(parent: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    if parent.exists() {
        for entry in fs_err::read_dir(parent).map_err(Error::io("list", parent))? {
            let entry = entry.map_err(Error::io("list", parent))?;
            let step =
                entry.file_name().to_str().and_then(|n| n.strip_prefix("step-")?.parse().ok());
            found.extend(step.map(|step| (step, entry.path())));
        }
    }
    found.sort();
    Ok(found)
}

fn prune(parent: &Path, keep: usize) -> Result<()> {
    let all = list(parent)?;
    for (_, path) in &all[..all.len().saturating_sub(keep.max(1))] {
        fs_err::remove_dir_all(path).map_err(Error::io("remove", path))?;
    }
    Ok(())
}

fn digests(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut digests = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs_err::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let path = entry.map_err(Error::io("list", &dir))?.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            if relative != "position.json" {
                digests.insert(relative, sha256_of_file(&path)?);
            }
        }
    }
    Ok(digests)
}
