//! What a pipeline's `[tables]` point at: a file, a folder or a glob of Parquet, JSONL or CSV.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Where an input table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSource {
    address: String,
    path: PathBuf,
}

/// How the files of a table are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `.parquet`
    Parquet,
    /// One JSON object per line: `.jsonl`, `.ndjson`, `.json`
    JsonLines,
    /// With a header line: `.csv`
    Csv,
}

const KNOWN: &str = ".parquet, .jsonl, .ndjson, .json (one object per line) and .csv";
/// Folders inside folders are looked into this deep.
const DEPTH_MAX: usize = 8;

impl TableSource {
    /// The table at `address`, which is relative to `base_dir` unless it is absolute.
    pub fn new(address: &str, base_dir: &Path) -> Result<Self> {
        if let Some(rest) = address.strip_prefix("hf://") {
            return Err(Error::input(
                format!("`{address}` isn't fetched in this version"),
                format!(
                    "download it once (`huggingface-cli download {} --repo-type dataset \
                     --local-dir DIR`) and give DIR as the table",
                    rest.trim_start_matches("datasets/")
                ),
            ));
        }
        if let Some((scheme, _)) = address.split_once("://") {
            return Err(Error::input(
                format!("`{address}`: tables can't be read from `{scheme}://`"),
                "download it and give the path of the file or folder",
            ));
        }
        if address.is_empty() {
            return Err(Error::input(
                "a table's address is empty",
                format!("give the path of a file, a folder or a glob of {KNOWN}"),
            ));
        }
        Ok(Self { address: address.to_owned(), path: base_dir.join(address) })
    }

    /// The address as it was given.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The table's files in the order of their paths, and how they are written.
    pub fn files(&self) -> Result<(Kind, Vec<PathBuf>)> {
        let files = if self.path.is_dir() {
            self.folder()?
        } else if self.path.exists() {
            vec![self.path.clone()]
        } else if self.address.contains(['*', '?', '[']) {
            self.glob()?
        } else {
            return Err(self.missing());
        };
        let mut kinds: Vec<(Kind, &Path)> = Vec::new();
        for file in &files {
            let kind = kind_of(file).ok_or_else(|| {
                Error::input(
                    format!("`{}`: can't tell from its name how it is written", file.display()),
                    format!("known are {KNOWN}"),
                )
            })?;
            if !kinds.iter().any(|&(k, _)| k == kind) {
                kinds.push((kind, file));
            }
        }
        match kinds[..] {
            [(kind, _)] => Ok((kind, files)),
            [(a, path_a), (b, path_b), ..] => Err(Error::input(
                format!(
                    "`{}` holds files of several kinds: `{}` is {a:?}, `{}` is {b:?}",
                    self.address,
                    path_a.display(),
                    path_b.display()
                ),
                "point at files of one kind, such as with `folder/*.parquet`",
            )),
            [] => Err(Error::input(
                format!("`{}` holds no table", self.path.display()),
                format!("put files there that end in {KNOWN}"),
            )),
        }
    }

    fn folder(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let mut folders = vec![(0, self.path.clone())];
        while let Some((depth, folder)) = folders.pop() {
            let entries =
                fs_err::read_dir(&folder).map_err(|error| Error::io("list", &folder, &error))?;
            for entry in entries {
                let path = entry.map_err(|error| Error::io("list", &folder, &error))?.path();
                if is_hidden(&path) {
                    continue;
                }
                if path.is_dir() && depth < DEPTH_MAX {
                    folders.push((depth + 1, path));
                } else if kind_of(&path).is_some() {
                    files.push(path);
                }
            }
        }
        files.sort();
        Ok(files)
    }

    fn glob(&self) -> Result<Vec<PathBuf>> {
        let paths = glob::glob(&self.path.to_string_lossy()).map_err(|error| {
            Error::input(
                format!("`{}` is not a valid glob: {}", self.address, error.msg),
                "`*` stands for any part of a name, `**` for any folders, `[ab]` for a or b",
            )
        })?;
        let mut files = Vec::new();
        for path in paths {
            let path = path.map_err(|e| Error::io("read", e.path(), e.error()))?;
            if path.is_file() && !is_hidden(&path) {
                files.push(path);
            }
        }
        if files.is_empty() {
            return Err(Error::input(
                format!("`{}` matches no file", self.path.display()),
                "check the path; a relative one starts at the current directory",
            ));
        }
        files.sort();
        Ok(files)
    }

    fn missing(&self) -> Error {
        let parent = self.path.parent().unwrap_or(Path::new("."));
        let entries = fs_err::read_dir(parent).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        let wrong = self.path.file_name().map_or(String::new(), |n| n.to_string_lossy().into());
        let near = |name: &&String| strsim::damerau_levenshtein(name, &wrong) <= 3;
        let hint = match names.iter().find(near) {
            Some(name) => format!("did you mean `{}`?", parent.join(name).display()),
            None => "check the path; a relative one starts at the current directory".into(),
        };
        Error::input(format!("no file or folder at `{}`", self.path.display()), hint)
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with(['.', '_']))
}

fn kind_of(path: &Path) -> Option<Kind> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "parquet" => Some(Kind::Parquet),
        "jsonl" | "ndjson" | "json" => Some(Kind::JsonLines),
        "csv" => Some(Kind::Csv),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, "").unwrap();
        }
        dir
    }

    fn found(dir: &tempfile::TempDir, address: &str) -> Result<(Kind, Vec<String>)> {
        let (kind, files) = TableSource::new(address, dir.path())?.files()?;
        let relative = |path: PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
        Ok((kind, files.into_iter().map(relative).collect()))
    }

    #[test]
    fn files_folders_and_globs_are_found_in_order() {
        let dir = folder(&["d/b.parquet", "d/a.parquet", "d/sub/c.parquet", "d/.x", "d/README.md"]);
        let all = ["d/a.parquet", "d/b.parquet", "d/sub/c.parquet"].map(str::to_owned);
        assert_eq!(found(&dir, "d").unwrap(), (Kind::Parquet, all.to_vec()));
        assert_eq!(found(&dir, "d/**/*.parquet").unwrap(), (Kind::Parquet, all.to_vec()));
        assert_eq!(found(&dir, "d/*.parquet").unwrap(), (Kind::Parquet, all[..2].to_vec()));
        assert_eq!(found(&dir, "d/a.parquet").unwrap(), (Kind::Parquet, all[..1].to_vec()));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_remedy() {
        let dir = folder(&["mixed/a.parquet", "mixed/b.jsonl", "x.txt", "e/README", "train.csv"]);
        let cases = [
            ("nowhere.parquet", "no file or folder at", "check the path"),
            ("trian.csv", "no file or folder at", "did you mean"),
            ("mixed", "holds files of several kinds", "point at files of one kind"),
            ("x.txt", "can't tell from its name", "known are .parquet"),
            ("e", "holds no table", "put files there"),
            ("*.parquet", "matches no file", "check the path"),
            ("[", "is not a valid glob", "stands for any part"),
            ("", "address is empty", "give the path"),
            (
                "hf://datasets/openai/gsm8k",
                "isn't fetched in this version",
                "download openai/gsm8k",
            ),
            ("s3://x/y.parquet", "can't be read from `s3://`", "download it"),
        ];
        for (address, message, hint) in cases {
            let error = found(&dir, address).unwrap_err();
            assert!(error.to_string().contains(message), "{address}: {error}");
            assert!(error.hint().unwrap_or_default().contains(hint), "{address}: {error:?}");
        }
    }
}
