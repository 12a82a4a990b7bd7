//! Watchdogs of the training stages: what they look at, and what they do.

use super::reader::{choice, section, section_fields};

choice! {
    /// What a watchdog does when it finds something.
    pub enum Watch {
        /// It isn't looked at.
        Off = "off",
        /// A warning with a remedy; the run goes on.
        Warn = "warn",
        /// The run stops after a checkpoint, with the remedy.
        Stop = "stop",
    }
}

section! {
    /// What is watched. A share is of one step's completions, or groups.
    pub struct Watchdogs {
        /// Completions that hit `sampling.max_tokens`; remedy: raise it, or shorten the prompts.
        pub truncated: Watch = Watch::Warn;
        /// Share of truncated completions that is still well.
        pub truncated_share_max: f64 = 0.5, "in [0, 1]" |x| *x >= 0.0 && *x <= 1.0;
        /// Groups whose completions all have the same reward and so teach nothing; remedy: easier
        /// or harder prompts, a larger group.
        pub no_signal: Watch = Watch::Warn;
        /// Share of groups without signal that is still well.
        pub no_signal_share_max: f64 = 0.9, "in [0, 1]" |x| *x >= 0.0 && *x <= 1.0;
        /// Completions in which the verifier finds no answer at all; remedy: the template, or a
        /// cold start.
        pub unparsed: Watch = Watch::Warn;
        /// Share of completions without an answer that is still well.
        pub unparsed_share_max: f64 = 0.9, "in [0, 1]" |x| *x >= 0.0 && *x <= 1.0;
        /// Completions that ended at a stop token which isn't among the tokens that the loss is
        /// over, so that the model never learns to stop.
        pub stop_token_masked: Watch = Watch::Stop;
        /// A chat template that gives other tokens for a prompt alone than for the prompt with a
        /// completion after it.
        pub template_breaks_mask: Watch = Watch::Stop;
        /// Sampler weights whose checksum is not the learner's after a publication.
        pub weights_differ: Watch = Watch::Stop;
        /// A loss, gradient or weight that is not a number. The batch is set aside and the weights
        /// are rolled back; `warn` then goes on, `stop` stops.
        pub nan: Watch = Watch::Warn;
        /// Batches set aside for NaN in one stage, at most; one more stops the run.
        pub nan_batches_max: u32 = 3;
        /// A step without a single completion to train on.
        pub trains_on_nothing: Watch = Watch::Warn;
        /// Steps in a row without anything to train on, at most; one more stops the run.
        pub trains_on_nothing_steps_max: u32 = 20, "at least 1" |n| *n >= 1;
    }
}

section! {
    /// What is watched before an `sft` or `dpo` stage trains, and while it does.
    pub struct SftWatchdogs {
        /// Examples whose stop token is outside the loss mask, so that the model never learns to
        /// stop, or a tokenizer without one. Examples whose end was cut off don't count.
        pub stop_token_masked: Watch = Watch::Stop;
        /// A chat template that gives other tokens for a prompt alone than for the prompt with a
        /// completion after it.
        pub template_breaks_mask: Watch = Watch::Stop;
        /// A loss or gradient that is not a number. The batch is set aside, in the table
        /// `NAME_set_aside`, and the weights are kept; `warn` then goes on, `stop` stops.
        pub nan: Watch = Watch::Warn;
        /// Batches set aside for NaN in one stage, at most; one more stops the run.
        pub nan_batches_max: u32 = 3;
    }
}

section! {
    /// What is watched while a `reward-model` stage trains.
    pub struct NanWatchdog {
        /// A loss or gradient that is not a number. The batch is set aside, in the table
        /// `NAME_set_aside`, and the weights are kept; `warn` then goes on, `stop` stops.
        pub nan: Watch = Watch::Warn;
        /// Batches set aside for NaN in one stage, at most; one more stops the run.
        pub nan_batches_max: u32 = 3;
    }
}

section_fields!(Watchdogs, SftWatchdogs, NanWatchdog);
