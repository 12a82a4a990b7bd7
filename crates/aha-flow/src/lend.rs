//! What a stage lends its rewards: models, and what those need that wait for others.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use aha_compute::Device;
use aha_compute::random::Philox;
use aha_model::config::Head;
use aha_reward::backend::{Backends, ChatModel, PreferenceModel};
use aha_reward::wait::{Answers, Waiting};
use aha_reward::{Kind, Settings, Spec, model};
use aha_sample::{Request, Sampler, Sampling};

use crate::error::{Error, Result};
use crate::generate::{self, address};
use crate::models::{self, Loaded, Models};
use crate::pipeline::{self, Pipeline, Places, Run, Template};
use crate::prompts::{self, Prompter};
use crate::reward_model::RewardModel;
use crate::rundir::RunDir;
use crate::stop::Stop;

/// What rewards that wait for others share during a run: its answers, which go on with it, and its stop.
pub fn waiting(pipeline: &Pipeline, dir: &RunDir, stop: &Stop) -> Result<Waiting> {
    let mut rewards = pipeline.stages.iter().flat_map(|stage| stage.kind.rewards());
    let answers = if rewards.any(|reward| reward.0.kind().waits()) {
        let path = dir.answers();
        Some(Arc::new(answers(dir, &path)?))
    } else {
        None
    };
    Ok(Waiting { cancel: stop.cancel(), answers, ..Waiting::default() })
}

/// Opens a file of answers in a run directory, which waits where the disk is full.
pub fn answers(dir: &RunDir, path: &Path) -> Result<Answers> {
    let answers = dir.write(|| Answers::open(path).map_err(Error::io("open", path)))?;
    let (dir, path) = (dir.clone(), path.to_owned());
    Ok(answers.written_by(Box::new(move |work| {
        dir.write(|| work().map_err(Error::io("write", &path))).map_err(|error| error.to_string())
    })))
}

/// Lends to the rewards of one stage.
pub struct Lender {
    chat: BTreeMap<String, Loaded>,
    reward_models: BTreeMap<String, Arc<RewardModel>>,
    run: Run,
    random: Philox,
    waiting: Waiting,
}

impl Lender {
    /// Loads the models that the rewards of `stage` borrow.
    pub async fn new(
        stage: &str,
        rewards: &[Spec],
        models: &Models<'_>,
        waiting: &Waiting,
    ) -> Result<Lender> {
        let mut lender = Lender::empty(stage, &models.pipeline.run, waiting);
        for name in rewards.iter().filter_map(judge) {
            lender.chat.insert(name.to_owned(), models.load(name).await?);
        }
        for name in rewards.iter().filter_map(scorer) {
            let model = Arc::new(models.reward_model(name).await?);
            lender.reward_models.insert(name.to_owned(), model);
        }
        Ok(lender)
    }

    /// As [`Lender::new`] without a pipeline: rewards call models by their addresses.
    pub fn by_address(
        stage: &str,
        rewards: &[Spec],
        (run, device): (&Run, &Device),
        places: &Places,
    ) -> Result<Lender> {
        let mut lender = Lender::empty(stage, run, &Waiting::default());
        let locate = |name: &str| {
            let found = places.locate(name);
            found.map_err(|found| Error::input_with(found.message, found.hint))
        };
        for name in rewards.iter().filter_map(judge) {
            lender.chat.insert(name.to_owned(), models::load(&locate(name)?, device)?);
        }
        for name in rewards.iter().filter_map(scorer) {
            let path = locate(name)?;
            let loaded = models::load_any(&path, device)?;
            loaded.model.check_head(Head::Score).map_err(|error| error.at(&path))?;
            let model = Arc::new(RewardModel::new(loaded)?);
            lender.reward_models.insert(name.to_owned(), model);
        }
        Ok(lender)
    }

    fn empty(stage: &str, run: &Run, waiting: &Waiting) -> Lender {
        Lender {
            chat: BTreeMap::new(),
            reward_models: BTreeMap::new(),
            random: generate::stage_random(run.seed, stage).derive("judge"),
            run: run.clone(),
            waiting: waiting.clone(),
        }
    }
}

/// The language model that a reward asks.
fn judge(reward: &Spec) -> Option<&str> {
    reward.settings.model().filter(|_| reward.kind() == Kind::Judge)
}

/// The reward model that a reward asks.
fn scorer(reward: &Spec) -> Option<&str> {
    match &reward.settings {
        Settings::Model(model::Settings { model, .. }) => model.as_deref(),
        _ => None,
    }
}

impl Backends for Lender {
    fn preference_model(&self, name: &str) -> Result<Arc<dyn PreferenceModel>, String> {
        match self.reward_models.get(name) {
            Some(model) => Ok(Arc::clone(model) as _),
            None => Err(format!("`{name}`, which was not loaded")),
        }
    }

    fn chat_model(
        &self,
        name: &str,
        max_tokens: usize,
        temperature: f64,
    ) -> Result<Arc<dyn ChatModel>, String> {
        let loaded =
            self.chat.get(name).ok_or_else(|| format!("`{name}`, which was not loaded"))?;
        let sampling = pipeline::Sampling {
            temperature,
            max_tokens: u32::try_from(max_tokens).unwrap_or(u32::MAX),
            ..pipeline::Sampling::default()
        };
        let has_template = loaded.tokenizer.chat_template().is_some();
        let template = if has_template { Template::Chat } else { Template::Raw };
        let prompter = Prompter::new(&loaded.tokenizer, &template).map_err(|e| e.to_string())?;
        Ok(Arc::new(Chat {
            sampling: prompts::sampling(&sampling, &loaded.model, &loaded.tokenizer),
            prompter,
            loaded: loaded.clone(),
            run: self.run.clone(),
            random: self.random,
            waiting: self.waiting.clone(),
            sampler: Mutex::default(),
        }))
    }

    fn waiting(&self) -> Waiting {
        self.waiting.clone()
    }
}

/// A model of the pipeline that answers through our own sampler. Draws are addressed by the prompt, so an
/// answer is a function of the prompt, the weights and the run's seed.
struct Chat {
    loaded: Loaded,
    prompter: Prompter,
    sampling: Sampling,
    run: Run,
    random: Philox,
    waiting: Waiting,
    /// Made when it is first asked; one caller at a time has it.
    sampler: Mutex<Option<Sampler>>,
}

impl ChatModel for Chat {
    fn answers(&self, prompts: &[String]) -> Vec<Result<String, String>> {
        let mut answers: Vec<Result<String, String>> =
            prompts.iter().map(|_| Err("the run was stopped".to_owned())).collect();
        let mut kept = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        let Loaded { model, tokenizer } = &self.loaded;
        // Taken out: one that panics leaves none, and the next caller gets a new one.
        let mut sampler =
            kept.take().unwrap_or_else(|| generate::sampler(model, tokenizer, &self.run));
        let (mut requests, mut asked) = (Vec::new(), Vec::new());
        for (idx, prompt) in prompts.iter().enumerate() {
            match self.request(&sampler, prompt) {
                Ok(request) => {
                    requests.push(request);
                    asked.push(idx);
                }
                Err(error) => answers[idx] = Err(error.to_string()),
            }
        }
        let cancel = self.waiting.cancel.flag();
        let (sampling, random) = (&self.sampling, self.random);
        let drawn = sampler.run(model, &requests, sampling, random, cancel, &mut |completion| {
            let text = tokenizer.decode(&completion.token_ids, true);
            answers[asked[completion.request_idx]] = text.map_err(|error| error.to_string());
            true
        });
        if let Err(error) = drawn {
            let reason = error.to_string();
            asked.iter().for_each(|&idx| answers[idx] = Err(reason.clone()));
        }
        *kept = Some(sampler);
        answers
    }
}

impl Chat {
    fn request(&self, sampler: &Sampler, prompt: &str) -> Result<Request> {
        // What is judged must not end the turn that it stands in.
        let text = self.loaded.tokenizer.as_plain_text(prompt);
        let prompt_ids = self.prompter.prompt_ids(&text)?.into();
        let request = Request { prompt_ids, address: address(prompt), samples: 0..1 };
        sampler.check(&self.loaded.model, &request, &self.sampling)?;
        Ok(request)
    }
}
