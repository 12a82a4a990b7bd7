//! The `export` stage: a model, or the adapter that a stage trained, written out for other programs.

use std::path::{Path, PathBuf};

use aha_model::adapter;
use aha_model::save::{self, SaveDtype, SaveOptions};

use crate::error::{Error, Result};
use crate::models::{self, Loaded, Models};
use crate::pipeline::{Dtype, ExportStage, Format};
use crate::rundir::RunDir;

/// What the stage works with.
pub struct Export<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Its settings.
    pub settings: &'a ExportStage,
    /// Where a model goes for which the settings name no place.
    pub dir: &'a RunDir,
}

impl Export<'_> {
    /// Writes the model, one of `models`.
    pub async fn run(&self, models: &Models<'_>) -> Result<()> {
        let (name, out) = (&self.settings.model, self.settings.out.as_ref().map(PathBuf::from));
        match self.settings.format {
            Format::Hf => {
                let out = out.unwrap_or_else(|| self.dir.model(self.stage));
                write(&models.load_any(name).await?, &out, self.settings)
            }
            Format::Peft => {
                let out = out.unwrap_or_else(|| self.dir.adapter(self.stage));
                write_adapter(&self.dir.adapter(name), &out, self.settings)
            }
        }
    }
}

/// Writes a model to `out` in Hugging Face layout. A model that was written there before is replaced; a
/// directory that holds anything else is refused, and left as it is.
pub fn write(base: &Loaded, out: &Path, settings: &ExportStage) -> Result<()> {
    let out = &place(out)?;
    let options =
        SaveOptions { dtype: settings.dtype.into(), shard_bytes_max: settings.shard_size.0 };
    models::save_as(out, &base.model, &base.tokenizer, options)
}

/// Writes the adapter that is in `from` to `out` in peft's layout, as [`write()`] does a model.
fn write_adapter(from: &Path, out: &Path, settings: &ExportStage) -> Result<()> {
    let out = &place(out)?;
    adapter::copy(from, out, settings.dtype.into())?;
    crate::rundir::sync_parent(out)
}

impl From<Dtype> for SaveDtype {
    fn from(dtype: Dtype) -> SaveDtype {
        match dtype {
            Dtype::F32 => SaveDtype::F32,
            Dtype::Bf16 => SaveDtype::Bf16,
        }
    }
}

/// Where it is written to, once it may be.
fn place(out: &Path) -> Result<PathBuf> {
    // A name alone has no parent to make or to flush.
    let out = std::path::absolute(out).map_err(Error::io("find", out))?;
    check_place(&out)?;
    if let Some(parent) = out.parent() {
        fs_err::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    Ok(out)
}

/// The directory is replaced whole, so it must not hold anything but what an export writes.
pub(crate) fn check_place(out: &Path) -> Result<()> {
    let refuse = |found: String| {
        let message = format!("can't export to `{}`: {found}", out.display());
        Err(Error::input_with(
            message,
            "name a directory that is empty, isn't there, or holds nothing but a model or an adapter that was \
             written by aha",
        ))
    };
    if !out.is_dir() {
        // The nearest that is there has to be a directory: of a file nothing can be made.
        let nearest = out.ancestors().find(|path| path.exists()).filter(|path| !path.is_dir());
        return match nearest {
            Some(file) => refuse(format!("`{}` is a file", file.display())),
            None => Ok(()),
        };
    }
    let (mut is_empty, mut is_model) = (true, false);
    for entry in fs_err::read_dir(out).map_err(Error::io("list", out))? {
        let entry = entry.map_err(Error::io("list", out))?;
        let kind = entry.file_type().map_err(Error::io("look at", &entry.path()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // A link leads to what somebody else keeps.
        if !kind.is_file() || !(save::is_written(&name) || adapter::is_written(&name)) {
            return refuse(format!("the directory also holds `{name}`"));
        }
        is_empty = false;
        is_model |= ["config.json", adapter::CONFIG].contains(&name.as_str());
    }
    if is_empty || is_model {
        Ok(())
    } else {
        refuse("the directory holds files, but no config.json and no adapter_config.json".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_model_is_never_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let refused = |path: &Path| check_place(path).unwrap_err().to_string();
        check_place(&temp.path().join("new")).unwrap();
        let out = &temp.path().join("out");
        fs_err::create_dir(out).unwrap();
        check_place(out).unwrap();
        fs_err::write(out.join("thesis.tex"), "years of work").unwrap();
        assert!(refused(out).contains("also holds `thesis.tex`"), "{}", refused(out));
        assert!(refused(&out.join("thesis.tex")).contains("thesis.tex` is a file"));
        assert!(refused(&out.join("thesis.tex/model")).contains("thesis.tex` is a file"));
        // A config of the same name makes no model of it.
        fs_err::write(out.join("config.json"), "{}").unwrap();
        assert!(refused(out).contains("also holds `thesis.tex`"), "{}", refused(out));
        fs_err::remove_file(out.join("thesis.tex")).unwrap();
        check_place(out).unwrap();
        // Nor do folders and links of the names that an export gives.
        fs_err::create_dir(out.join("tokenizer.json")).unwrap();
        assert!(refused(out).contains("tokenizer.json"));
        fs_err::remove_dir(out.join("tokenizer.json")).unwrap();
        std::os::unix::fs::symlink("elsewhere", out.join("model.safetensors")).unwrap();
        assert!(refused(out).contains("model.safetensors"));
        fs_err::remove_file(out.join("model.safetensors")).unwrap();
        fs_err::rename(out.join("config.json"), out.join("tokenizer.json")).unwrap();
        assert!(refused(out).contains("no config.json"));
        fs_err::remove_file(out.join("tokenizer.json")).unwrap();
        fs_err::write(out.join(adapter::CONFIG), "{}").unwrap();
        fs_err::write(out.join(adapter::WEIGHTS), "").unwrap();
        check_place(out).unwrap();
    }
}
