//! What a pipeline that was submitted may name: data and models in folders that the operator allowed, and nothing that
//! runs commands or asks servers unless the operator allowed that.
//!
//! Paths are held against the policy as the file system has them, with every link followed: a link inside an allowed
//! folder that leads out of it is refused. A run reads its files later, but over the API nobody makes links.

use std::path::{Path, PathBuf};

use aha_flow::pipeline::{
    AdaptedModel, ModelSource, Pipeline, Places, Reward, StageKind, TokenizerSource,
};
use aha_reward::Settings;
use aha_reward::code::Isolation;

use crate::error::{Error, Result};
use crate::options::Allowed;

/// What pipelines may name.
#[derive(Clone, Debug)]
pub struct Policy {
    base_dir: PathBuf,
    folders: Vec<PathBuf>,
    /// The daemon's own folder, of which nothing but the runs is anybody's.
    home: PathBuf,
    /// The runs' directories: read, and written by their own runs alone.
    runs: PathBuf,
    commands: bool,
    network: bool,
    keys: Vec<String>,
}

impl Policy {
    /// What the operator allowed, and the runs in `runs` of the daemon's `home`. Without a folder, the one that the
    /// daemon was started in is allowed, unless that is the root of all.
    pub fn new(allowed: &Allowed, base_dir: &Path, home: &Path, runs: &Path) -> Result<Policy> {
        let found = |path: &Path| path.canonicalize().map_err(Error::io("find", path));
        let base_dir = found(base_dir)?;
        let mut folders =
            allowed.folders.iter().map(|dir| found(dir)).collect::<Result<Vec<_>>>()?;
        if folders.is_empty() && base_dir != Path::new("/") {
            folders.push(base_dir.clone());
        }
        let (home, runs) = (found(home)?, found(runs)?);
        let Allowed { commands, network, keys, .. } = allowed.clone();
        Ok(Policy { base_dir, folders, home, runs, commands, network, keys })
    }

    /// The folder that relative paths start from where a submission names none.
    pub fn base_dir(&self) -> &Path {
        &self.base_dir
    }

    /// Fails for a pipeline that names what it may not. Waits for the disk.
    pub fn check(&self, pipeline: &Pipeline, places: &Places) -> Result<()> {
        for (name, address) in &pipeline.tables {
            let of = format!("table `{name}`");
            // What is wrong with the address itself is told when the pipeline is checked.
            let Ok(source) = places.table(address) else { continue };
            if !address.starts_with("hf://") {
                self.check_near(&places.base_dir.join(address), &of)?;
            }
            for file in source.files().map(|(_, files)| files).unwrap_or_default() {
                self.check_path(&file, &of)?;
            }
        }
        for (name, source) in &pipeline.models {
            self.check_model(name, source, pipeline, places)?;
        }
        for stage in &pipeline.stages {
            let of = format!("stage `{}`", stage.name);
            for reward in stage.kind.rewards() {
                self.check_reward(reward, &of)?;
            }
            if let Some(endpoint) = stage.kind.endpoint() {
                self.check_network(&format!("{of} asks an endpoint"))?;
                self.check_key(endpoint.api_key_env.as_deref(), &of)?;
            }
            if let StageKind::Export(export) = &stage.kind {
                let out = export.out.as_ref().map(|out| places.base_dir.join(out));
                out.map_or(Ok(()), |out| self.check_out(&out, &of))?;
            }
        }
        Ok(())
    }

    fn check_model(
        &self,
        name: &str,
        source: &ModelSource,
        pipeline: &Pipeline,
        places: &Places,
    ) -> Result<()> {
        let of = format!("model `{name}`");
        match source {
            ModelSource::Path(path) => self.check_located(path, places, &of),
            ModelSource::Adapted(AdaptedModel { base, adapter }) => {
                self.check_located(base, places, &of)?;
                match places.adapter(adapter) {
                    Ok(path) => self.check_files(&path, &of),
                    Err(_) => self.check_unfound(adapter, places, &of),
                }
            }
            ModelSource::Random(random) => match &random.tokenizer {
                TokenizerSource::Of(path) if pipeline.model(path).is_none() => {
                    self.check_located(path, places, &of)
                }
                _ => Ok(()),
            },
        }
    }

    fn check_located(&self, path: &str, places: &Places, of: &str) -> Result<()> {
        match places.locate(path) {
            Ok(path) => self.check_files(&path, of),
            Err(_) => self.check_unfound(path, places, of),
        }
    }

    /// What isn't there is told when the pipeline is checked, but not to somebody who looks around in other folders.
    fn check_unfound(&self, path: &str, places: &Places, of: &str) -> Result<()> {
        match path.starts_with("hf://") {
            true => Ok(()),
            false => self.check_near(&places.base_dir.join(path), of),
        }
    }

    fn check_reward(&self, reward: &Reward, of: &str) -> Result<()> {
        let of = format!("reward `{}` of {of}", reward.name());
        self.check_key(reward.0.settings.variable(), &of)?;
        match &reward.0.settings {
            Settings::Command(_) => self.check_commands(&format!("{of} runs a command")),
            Settings::Code(code) if code.sandbox == Isolation::Weak => {
                self.check_commands(&format!("{of} runs programs in a weak sandbox"))
            }
            Settings::Http(_) => self.check_network(&format!("{of} asks a server")),
            Settings::Judge(judge) if judge.endpoint.url.is_some() => {
                self.check_network(&format!("{of} asks a server"))
            }
            _ => Ok(()),
        }
    }

    fn check_commands(&self, what: &str) -> Result<()> {
        let hint = "start the daemon with --allow-commands, or run the pipeline with `aha run`";
        let refused = || Error::forbidden(format!("{what}, which this daemon doesn't allow"), hint);
        if self.commands { Ok(()) } else { Err(refused()) }
    }

    fn check_network(&self, what: &str) -> Result<()> {
        let hint = "start the daemon with --allow-network, or run the pipeline with `aha run`";
        let refused = || Error::forbidden(format!("{what}, which this daemon doesn't allow"), hint);
        if self.network { Ok(()) } else { Err(refused()) }
    }

    /// Fails where the value of an environment variable would be sent that isn't meant for it: the daemon has others.
    fn check_key(&self, variable: Option<&str>, of: &str) -> Result<()> {
        let Some(name) = variable.filter(|name| !self.keys.iter().any(|key| key == name)) else {
            return Ok(());
        };
        let what = format!("{of} sends the environment variable `{name}` as a key");
        let hint =
            format!("start the daemon with --allow-key {name}, or run the pipeline with `aha run`");
        Err(Error::forbidden(format!("{what}, which this daemon doesn't allow"), hint))
    }

    /// Fails for a path that leads out of the allowed folders.
    fn check_path(&self, path: &Path, of: &str) -> Result<()> {
        let real = path.canonicalize().map_err(Error::io("find", path))?;
        self.check_inside(&real, path, of)
    }

    /// As [`Policy::check_path`], of a directory and every file in it: a link among them can lead out.
    fn check_files(&self, path: &Path, of: &str) -> Result<()> {
        self.check_path(path, of)?;
        if path.is_dir() {
            for entry in std::fs::read_dir(path).map_err(Error::io("list", path))? {
                let file = entry.map_err(Error::io("list", path))?.path();
                // Where a link leads to nothing, nothing can be read.
                if file.exists() {
                    self.check_path(&file, of)?;
                }
            }
        }
        Ok(())
    }

    /// Fails for a directory that may not be written to.
    fn check_out(&self, path: &Path, of: &str) -> Result<()> {
        self.check_near(path, of)?;
        let real = path.ancestors().find_map(|at| at.canonicalize().ok());
        match real.is_some_and(|real| real.starts_with(&self.home)) {
            true => Err(Error::forbidden(
                format!("{of}: `{}` is in the folder of the daemon", path.display()),
                "leave `out` away, which puts the model into the run's own directory, or name another",
            )),
            false => Ok(()),
        }
    }

    /// As [`Policy::check_path`], of one that need not be there: the part that is counts. A path that goes up from
    /// where nothing is, or has a pattern in a name that goes up later, is refused as it can't be followed.
    fn check_near(&self, path: &Path, of: &str) -> Result<()> {
        let there = path.ancestors().find_map(|at| Some((at, at.canonicalize().ok()?)));
        let Some((at, real)) = there else { return Err(self.refused(path, of)) };
        let rest = path.strip_prefix(at).unwrap_or(path);
        let goes_up = rest.components().any(|part| part == std::path::Component::ParentDir);
        if goes_up { Err(self.refused(path, of)) } else { self.check_inside(&real, path, of) }
    }

    fn check_inside(&self, real: &Path, path: &Path, of: &str) -> Result<()> {
        let is_in = |folder: &PathBuf| real.starts_with(folder);
        let is_allowed = self.folders.iter().any(is_in) && !is_in(&self.home);
        match is_allowed || is_in(&self.runs) {
            true => Ok(()),
            false => Err(self.refused(path, of)),
        }
    }

    fn refused(&self, path: &Path, of: &str) -> Error {
        Error::forbidden(
            format!("{of}: `{}` is not in a folder that this daemon allows", path.display()),
            "start the daemon with --allow and the folder, or put the files into one that it allows",
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use aha_flow::pipeline::{Text, parse};

    use super::*;
    use crate::error::Kind;

    struct World {
        temp: tempfile::TempDir,
        policy: Policy,
        places: Places,
    }

    /// A folder `data` that is allowed and a folder `secret` beside it that isn't.
    fn world(commands: bool, network: bool) -> World {
        let temp = tempfile::tempdir().unwrap();
        for dir in ["data/model", "secret/model", "data/home/runs"] {
            fs::create_dir_all(temp.path().join(dir)).unwrap();
        }
        for file in
            ["data/a.jsonl", "secret/a.jsonl", "data/model/config.json", "secret/model/config.json"]
        {
            fs::write(temp.path().join(file), "{}\n").unwrap();
        }
        symlink(temp.path().join("secret"), temp.path().join("data/link")).unwrap();
        symlink(temp.path().join("secret/a.jsonl"), temp.path().join("data/b.jsonl")).unwrap();
        fs::create_dir(temp.path().join("data/linked")).unwrap();
        let weights = temp.path().join("data/linked/model.safetensors");
        symlink(temp.path().join("secret/a.jsonl"), weights).unwrap();
        fs::write(temp.path().join("data/linked/config.json"), "{}\n").unwrap();
        let data = temp.path().join("data");
        let keys = vec!["JUDGE_KEY".to_owned()];
        let allowed = Allowed { folders: vec![data.clone()], commands, network, keys };
        let policy = {
            let home = data.join("home");
            Policy::new(&allowed, &data, &home, &home.join("runs")).unwrap()
        };
        World { policy, places: Places { base_dir: data, hf_cache: None }, temp }
    }

    impl World {
        fn check(&self, text: &str) -> Result<()> {
            let root = self.temp.path().display().to_string();
            let text = text.replace("ROOT", &root);
            let pipeline = parse(Text { path: "p.toml", text: &text, sets: &[] });
            self.policy.check(&pipeline.unwrap_or_else(|p| panic!("{p}")), &self.places)
        }
    }

    fn with_table(address: &str) -> String {
        format!(
            "[tables]\nt = \"{address}\"\n[[stage]]\nname = \"q\"\nkind = \"query\"\nsql = \"SELECT 1 AS a FROM t\"\n"
        )
    }

    fn with_model(source: &str) -> String {
        format!(
            "[models]\nm = {source}\n[tables]\nt = \"a.jsonl\"\n[[stage]]\nname = \"s\"\nkind = \"sample\"\n\
             model = \"m\"\nprompts = \"SELECT id, prompt FROM t\"\n"
        )
    }

    #[track_caller]
    fn assert_refused(result: Result<()>, said: &str) {
        let error = result.expect_err(said);
        assert_eq!(error.kind, Kind::Forbidden, "{error}");
        assert!(error.message.contains(said), "{error}");
        assert!(error.hint.is_some(), "{error}");
    }

    #[test]
    fn tables_are_in_allowed_folders_whatever_leads_to_them() {
        let world = world(false, false);
        for good in ["a.jsonl", "ROOT/data/a.jsonl", "model/../a.jsonl", "a*.jsonl"] {
            world.check(&with_table(good)).unwrap();
        }
        for bad in [
            "ROOT/secret/a.jsonl",
            "../secret/a.jsonl",
            "../secret/*.jsonl",
            "link/a.jsonl",
            "link",
            "b.jsonl",
            "*.jsonl",
            "/etc/passwd.csv",
            "ROOT/secret/none.jsonl",
            "none/../../secret/a.jsonl",
        ] {
            assert_refused(world.check(&with_table(bad)), "table `t`");
        }
    }

    #[test]
    fn models_and_exports_are_in_allowed_folders() {
        let world = world(false, false);
        world.check(&with_model("\"model\"")).unwrap();
        for bad in [
            "\"ROOT/secret/model\"",
            "\"../secret/model\"",
            "\"link/model\"",
            "\"linked\"",
            "\"home\"",
            "\"/nowhere\"",
            "{ base = \"model\", adapter = \"ROOT/secret/model\" }",
            "{ init = \"random\", tokenizer = \"../secret/model\" }",
        ] {
            assert_refused(world.check(&with_model(bad)), "model `m`");
        }
        let export = |out: &str| {
            format!(
                "[models]\nm = \"model\"\n[[stage]]\nname = \"e\"\nkind = \"export\"\nmodel = \"m\"\nout = \"{out}\"\n"
            )
        };
        world.check(&export("out/of/here")).unwrap();
        for bad in [
            "ROOT/secret/out",
            "../out",
            "link/out",
            "none/../../x",
            "home/runs/7/models/zero",
            "home/output",
        ] {
            assert_refused(world.check(&export(bad)), "stage `e`");
        }
        let made = world.temp.path().join("data/home/runs/7/models/zero");
        fs::create_dir_all(&made).unwrap();
        fs::write(made.join("config.json"), "{}\n").unwrap();
        world.check(&with_model("\"home/runs/7/models/zero\"")).unwrap();
    }

    #[test]
    fn commands_and_servers_have_to_be_allowed() {
        let with = |reward: &str| with_model("\"model\"") + &format!("rewards = [{reward}]\n");
        let command = with("{ kind = \"command\", command = [\"cat\"] }");
        let http = with("{ kind = \"http\", url = \"http://127.0.0.1:1/\" }");
        let judge = with("{ kind = \"judge\", url = \"http://127.0.0.1:1/v1\", model = \"m\" }");
        let endpoint = "endpoint = { url = \"http://127.0.0.1:1/v1\", model = \"m\" }\n";
        let of_stage = |keys: &str| {
            format!("[tables]\nt = \"a.jsonl\"\n[[stage]]\nname = \"s\"\n{endpoint}{keys}\n")
        };
        let sample = of_stage("kind = \"sample\"\nprompts = \"SELECT id, prompt FROM t\"");
        let eval = of_stage("kind = \"eval\"\ndata = \"SELECT id, prompt, answer FROM t\"");
        let (none, commands, network) =
            (world(false, false), world(true, false), world(false, true));
        assert_refused(none.check(&command), "which this daemon doesn't allow");
        assert_refused(network.check(&command), "which this daemon doesn't allow");
        commands.check(&command).unwrap();
        for text in [&http, &judge, &sample, &eval] {
            assert_refused(none.check(text), "asks a");
            assert_refused(commands.check(text), "asks a");
            network.check(text).unwrap();
        }
        none.check(&with("{ kind = \"math\" }")).unwrap();
    }

    #[test]
    fn only_variables_that_are_named_are_sent_as_keys() {
        let reward = |key: &str| {
            let url = "url = \"http://127.0.0.1:1/\"";
            with_model("\"model\"")
                + &format!("rewards = [{{ kind = \"http\", {url}, api_key_env = \"{key}\" }}]\n")
        };
        let stage = |key: &str| {
            format!(
                "[tables]\nt = \"a.jsonl\"\n[[stage]]\nname = \"s\"\nkind = \"sample\"\n\
                 prompts = \"SELECT id, prompt FROM t\"\n\
                 endpoint = {{ url = \"http://127.0.0.1:1/v1\", model = \"m\", api_key_env = \"{key}\" }}\n"
            )
        };
        let world = world(false, true);
        for text in [reward as fn(&str) -> String, stage]
            .map(|of| (of("JUDGE_KEY"), of("AWS_SECRET_ACCESS_KEY")))
        {
            world.check(&text.0).unwrap();
            assert_refused(
                world.check(&text.1),
                "the environment variable `AWS_SECRET_ACCESS_KEY`",
            );
        }
    }

    #[test]
    fn without_a_folder_the_one_of_the_start_is_allowed_unless_it_is_the_root() {
        let temp = tempfile::tempdir().unwrap();
        let here = Policy::new(&Allowed::default(), temp.path(), temp.path(), temp.path()).unwrap();
        assert!(here.folders.contains(&temp.path().canonicalize().unwrap()));
        let root =
            Policy::new(&Allowed::default(), Path::new("/"), temp.path(), temp.path()).unwrap();
        assert!(root.folders.is_empty(), "the runs alone");
    }
}
