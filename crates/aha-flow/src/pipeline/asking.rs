//! What a stage that asks an endpoint can get wrong, by the file alone.

use super::endpoint::{Api, Endpoint};
use super::local::stage_path;
use super::reader::Reader;
use super::rewards::{Unchecked, told};
use super::sampling::{SamplingWeights, Template};
use super::stages::{EvalStage, Pipeline, SampleStage, StageKind};

pub(super) fn check_sample(sample: &SampleStage, path: &str, reader: &mut Reader<'_>) {
    let Some(endpoint) = &sample.endpoint else {
        return check_has_model(sample.model.is_some(), "a string", path, reader);
    };
    let mut asked = Asked { endpoint, path, reader };
    if sample.model.is_some() {
        let message = format!("`{path}` has a `model` as well as an `endpoint`");
        asked.report("model", message, "keep the one that writes the completions");
    }
    asked.check_template(&sample.template, matches!(sample.template, Template::Chat));
    asked.refuse("sampling.weights", sample.sampling.weights != SamplingWeights::Same);
    asked.refuse("thinking", sample.thinking.is_some());
    asked.check();
}

/// Beside models of the pipeline, a chat template is each one's own.
pub(super) fn check_eval(eval: &EvalStage, path: &str, reader: &mut Reader<'_>) {
    let Some(endpoint) = &eval.endpoint else {
        return check_has_model(eval.model.is_some(), "a name, or an array of names", path, reader);
    };
    let mut asked = Asked { endpoint, path, reader };
    let is_text = endpoint.api != Api::Chat;
    asked.check_template(&eval.template, is_text && eval.template == Template::Chat);
    asked.refuse("weights", eval.model.is_none() && eval.weights != SamplingWeights::Same);
    asked.refuse("thinking", eval.thinking.is_some());
    asked.check();
}

/// In `evals` a name is one model's.
pub(super) fn check_names(pipeline: &Pipeline, reader: &mut Reader<'_>) {
    for (idx, stage) in pipeline.stages.iter().enumerate() {
        let StageKind::Eval(eval) = &stage.kind else { continue };
        let Some(endpoint) = &eval.endpoint else { continue };
        let name = endpoint.name();
        let is_taken = pipeline.model(&name).is_some()
            || pipeline.stage(&name).is_some_and(|stage| stage.kind.is_training());
        let key = format!("{}.endpoint.model", stage_path(pipeline, idx, reader));
        if is_taken && reader.is_good(&key) {
            let message = format!(
                "the endpoint's model would be `{name}` in tables, as one of the pipeline is"
            );
            let hint = "give that of the pipeline another name".to_owned();
            reader.report_at(&key, message, Some(hint));
        }
    }
}

fn check_has_model(has_model: bool, expects: &str, path: &str, reader: &mut Reader<'_>) {
    let key = format!("{path}.model");
    if has_model || !reader.is_good(&key) || !reader.is_good(&format!("{path}.endpoint")) {
        return;
    }
    let message = format!("`{path}` has neither `model` nor `endpoint`");
    let hint = format!("add `model = …`: {expects}; or `endpoint = {{ url = …, model = … }}`");
    reader.report_at(&key, message, Some(hint));
}

/// A stage with an endpoint.
struct Asked<'a, 'b, 'c> {
    endpoint: &'a Endpoint,
    path: &'a str,
    reader: &'b mut Reader<'c>,
}

impl Asked<'_, '_, '_> {
    fn report(&mut self, key: &str, message: String, hint: &str) {
        let path = format!("{}.{key}", self.path);
        if self.reader.is_good(&path) {
            self.reader.report_at(&path, message, Some(hint.to_owned()));
        }
    }

    /// A server is sent the prompt, or a text with it: what a model is shown besides is the server's affair.
    fn check_template(&mut self, template: &Template, is_wrong_chat: bool) {
        if is_wrong_chat || *template == Template::R1Zero {
            let (key, got) = (format!("{}.template", self.path), template.text());
            let message = format!("`{key}` is \"{got}\", which an endpoint's prompts can't have");
            let hint = "use \"raw\" or a text with {prompt}: the server applies its own";
            self.report("template", message, hint);
        }
    }

    fn refuse(&mut self, key: &str, is_set: bool) {
        if is_set {
            let message =
                format!("`{}.{key}` is for models of this program, not for an endpoint", self.path);
            self.report(key, message, "leave it out");
        }
    }

    /// The endpoint's own settings.
    fn check(mut self) {
        let endpoint = self.endpoint;
        if endpoint.system.is_some() && endpoint.api != Api::Chat {
            let message = format!(
                "`{}.endpoint.system` needs `api = \"chat\"`: plain text has no messages",
                self.path
            );
            self.report(
                "endpoint.system",
                message,
                "put the text into `template`, before {prompt}",
            );
        }
        if let Err(problems) = endpoint.service().client(endpoint.path(), &Unchecked) {
            for problem in problems {
                let key = format!("endpoint.{}", problem.key);
                let (message, hint) = told(&format!("{}.{key}", self.path), &problem);
                self.report(&key, message, &hint);
            }
        }
    }
}
