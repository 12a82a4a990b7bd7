//! The `export` stage: a model written out for other programs.

use std::path::{Path, PathBuf};

use aha_model::save::SaveDtype;

use crate::error::{Error, Result};
use crate::models::{self, Loaded};
use crate::pipeline::{Dtype, ExportStage};
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
    /// Writes the model.
    pub fn run(&self, base: &Loaded) -> Result<()> {
        let out =
            self.settings.out.as_ref().map_or_else(|| self.dir.model(self.stage), PathBuf::from);
        write(base, &out, self.settings.dtype)
    }
}

/// Writes a model to `out` in Hugging Face layout. A model that is there is replaced; anything else is left.
pub fn write(base: &Loaded, out: &Path, dtype: Dtype) -> Result<()> {
    // A name alone has no parent to make or to flush.
    let out = &std::path::absolute(out).map_err(Error::io("find", out))?;
    check_place(out)?;
    if let Some(parent) = out.parent() {
        fs_err::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let dtype = match dtype {
        Dtype::F32 => SaveDtype::F32,
        Dtype::Bf16 => SaveDtype::Bf16,
    };
    models::save(out, &base.model, &base.tokenizer, dtype)
}

/// The directory is replaced whole, so it must not hold anything but a model.
fn check_place(out: &Path) -> Result<()> {
    let refuse = |found: &str| {
        let message = format!("can't export to `{}`: {found}", out.display());
        Err(Error::input_with(
            message,
            "name a directory that is empty, isn't there, or holds a model to replace",
        ))
    };
    if out.is_file() {
        return refuse("there is a file of that name");
    }
    if !out.is_dir() || out.join("config.json").is_file() {
        return Ok(());
    }
    let mut entries = fs_err::read_dir(out).map_err(Error::io("list", out))?;
    if entries.next().is_some() { refuse("the directory holds other files") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_model_is_never_replaced() {
        let temp = tempfile::tempdir().unwrap();
        check_place(&temp.path().join("new")).unwrap();
        check_place(temp.path()).unwrap();
        fs_err::write(temp.path().join("thesis.tex"), "years of work").unwrap();
        assert!(check_place(temp.path()).unwrap_err().to_string().contains("holds other files"));
        assert!(
            check_place(&temp.path().join("thesis.tex"))
                .unwrap_err()
                .to_string()
                .contains("a file")
        );
        fs_err::write(temp.path().join("config.json"), "{}").unwrap();
        check_place(temp.path()).unwrap();
    }
}
