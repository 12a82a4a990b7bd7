//! Conversations of an `sft` stage: they need a chat template, and turns can be chosen among theirs only.

use super::catalogue::Column;
use super::reader::Reader;
use super::sampling::Template;
use super::stages::{LossOn, SftForm, SftStage};

/// Checks the columns of the query at `data_path` against the other settings of its stage.
pub(crate) fn check(sft: &SftStage, data_path: &str, columns: &[Column], reader: &mut Reader<'_>) {
    let form = SftForm::of(columns.iter().map(|column| column.name.as_str()));
    let path = data_path.trim_end_matches(".data");
    let (template, loss_on) = (format!("{path}.template"), format!("{path}.loss_on"));
    if form != SftForm::Conversations {
        if matches!(sft.loss_on, LossOn::Last | LossOn::Flagged) && reader.is_good(&loss_on) {
            let message = format!(
                "`{loss_on}` is \"{}\", which chooses turns of conversations, but the query gives no \
                 column `messages`",
                sft.loss_on.word()
            );
            let hint = "use \"completion\" or \"all\", or give conversations".to_owned();
            reader.report_at(&loss_on, message, Some(hint));
        }
        return;
    }
    if matches!(sft.template, Template::Raw | Template::Text(_)) && reader.is_good(&template) {
        let place = if reader.has(&template) { template.as_str() } else { data_path };
        let message = format!(
            "the query of `{}` gives conversations (`messages`), which need a chat template",
            data_path
        );
        let hint = "set `template` to \"chat\", the model's own, or to \"r1-zero\"".to_owned();
        reader.report_at(place, message, Some(hint));
    }
    let messages = columns.iter().find(|column| column.name == "messages");
    if let Some(column) = messages.filter(|c| !c.is_text() && !c.type_name.contains("List")) {
        let message = format!(
            "column `messages` of `{}` must be a list of structs or its JSON text, got {}",
            data_path, column.type_name
        );
        let hint = "each message has the fields `role` and `content`".to_owned();
        reader.report_at(data_path, message, Some(hint));
    }
}
