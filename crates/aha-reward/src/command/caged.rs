//! A command as a job of the sandbox.

use std::path::Path;

use aha_sandbox::{File, Job, Limits, Stdin, is_shown};

use super::{is_executable, program_at};
use crate::code::Language;
use crate::code::toolchain;
use crate::spec::Problem;

/// Most bytes of the files that a command names.
const FILES_BYTES_MAX: u64 = 256 << 20;

/// What a worker may use. It waits for samples for as long as the run takes, so its time is that of each sample.
const LIMITS: Limits = Limits {
    // A year, far from what the kernel can't count.
    cpu_ms: 365 * 86_400_000,
    wall_ms: None,
    memory_bytes: 4 << 30,
    process_count_max: 64,
    file_bytes: 256 << 20,
    folder_bytes: 256 << 20,
    output_bytes: 0, // Nothing is collected: what it writes goes through its dialogue.
    open_files_max: 256,
};

/// The job of a command that can be run. The files that it names go into the job's folder, under their base
/// names; those that every job sees are named as they are.
pub(super) fn job(command: &[String]) -> Result<Job, Problem> {
    let mut job = Job::new(Vec::<String>::new());
    job.stdin = Stdin::Dialogue;
    job.limits = LIMITS;
    let mut copied = Copied::default();
    for (idx, word) in command.iter().enumerate() {
        let is_program = idx == 0;
        if is_program && matches!(word.as_str(), "python" | "python3") {
            let tool = toolchain::find(Language::Python)
                .map_err(|got| Problem::new("command", "a program that is installed", got))?;
            job.argv.push(tool.program.clone());
            job.folders.clone_from(&tool.folders);
            continue;
        }
        let place = if is_program { program_at(word) } else { Some(word.into()) };
        job.argv.push(match place.filter(|place| place.is_file()) {
            Some(place) if is_shown(&place) => place.to_string_lossy().into_owned(),
            Some(place) => copied.copy(&place)?,
            None => word.clone(),
        });
    }
    job.files = copied.files;
    Ok(job)
}

/// Files on their way into the job's folder.
#[derive(Default)]
struct Copied {
    files: Vec<File>,
    bytes: u64,
}

impl Copied {
    /// The name of the copy.
    fn copy(&mut self, place: &Path) -> Result<String, Problem> {
        let shown = || format!("`{}`", place.display());
        let problem = |must: &str, got: String| Problem::new("command", must, got);
        let name = place.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.filter(|name| !name.starts_with('.'));
        let must = "files with names that begin with no dot, as `sandbox` is set";
        let name = name.ok_or_else(|| problem(must, shown()))?;
        self.bytes += place.metadata().map_or(0, |found| found.len());
        if self.bytes > FILES_BYTES_MAX {
            let must = "files of at most 256 MiB together, as `sandbox` is set";
            return Err(problem(must, format!("{} bytes", self.bytes)));
        }
        let bytes = std::fs::read(place)
            .map_err(|error| problem("files that can be read", format!("{}: {error}", shown())))?;
        match self.files.iter().find(|file| file.name == name) {
            Some(file) if file.bytes == bytes => {}
            Some(_) => {
                let must = "files with distinct base names, as `sandbox` is set";
                return Err(problem(must, format!("`{name}` twice")));
            }
            None => {
                let is_program = is_executable(place);
                self.files.push(File { name: name.clone(), bytes, is_program });
            }
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_a_command_names_are_copied_and_named_by_their_base_names() {
        let folder = tempfile::tempdir().unwrap();
        let (other, at) = (folder.path().join("x"), |name: &str| folder.path().join(name));
        fs_err::create_dir(&other).unwrap();
        fs_err::write(at("score.py"), "1").unwrap();
        fs_err::write(other.join("score.py"), "2").unwrap();
        fs_err::write(at(".hidden"), "3").unwrap();
        let word = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
        let words = |words: &[String]| {
            let shell = ["/bin/sh".to_owned()];
            job(&shell.iter().chain(words).cloned().collect::<Vec<_>>())
        };
        let (script, missing) = (word(at("score.py")), word(at("missing")));
        let job = words(&[script.clone(), "-x".to_owned(), script.clone(), missing.clone()]);
        let job = job.unwrap();
        assert_eq!(job.argv, ["/bin/sh", "score.py", "-x", "score.py", missing.as_str()]);
        let files: Vec<_> = job.files.iter().map(|file| (&*file.name, &*file.bytes)).collect();
        assert_eq!(files, [("score.py", &b"1"[..])]);
        for bad in [[script, word(other.join("score.py"))], [missing, word(at(".hidden"))]] {
            assert_eq!(words(&bad).err().unwrap().key, "command", "{bad:?}");
        }
    }
}
