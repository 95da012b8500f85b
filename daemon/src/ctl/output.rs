//! Rendering: aligned tables and key–value lists for people, canonical protobuf JSON for programs.

use std::{
    io::{self, Write as _},
    sync::OnceLock,
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};

use super::client::Error;

/// Where a command writes to.
#[derive(Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Writes a whole message, indented.
    pub fn json<M: prost::Message>(&mut self, name: &str, message: &M) -> Result<(), Error> {
        self.write_json(name, message, true)
    }

    /// Writes a message of a stream: one line each, so that a reader can take them one by one.
    pub fn json_line<M: prost::Message>(&mut self, name: &str, message: &M) -> Result<(), Error> {
        self.write_json(name, message, false)
    }

    fn write_json<M: prost::Message>(
        &mut self,
        name: &str,
        message: &M,
        pretty: bool,
    ) -> Result<(), Error> {
        let mut bytes = to_json(name, message, pretty)?;
        bytes.push(b'\n');
        let mut stdout = io::stdout().lock();
        stdout.write_all(&bytes)?;
        stdout.flush()?;
        Ok(())
    }

    pub fn line(&mut self, text: impl AsRef<str>) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", text.as_ref())?;
        stdout.flush()?;
        Ok(())
    }

    /// A list with a heading for each column. `right` names the columns that hold numbers.
    pub fn table(
        &mut self,
        headings: &[&str],
        right: &[usize],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> Result<(), Error> {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(headings.iter().copied());
        let last = headings.len().saturating_sub(1);
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, if index == last { 0 } else { 2 }));
            if right.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for row in rows {
            table.add_row(row.into_iter().map(|cell| {
                if cell.is_empty() {
                    "-".to_owned()
                } else {
                    // What peers and clients sent must not move the cursor of a terminal.
                    printable(&cell)
                }
            }));
        }
        for line in table.lines() {
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// "Key   value" lines; an empty value leaves its line out.
    pub fn fields(&mut self, fields: &[(&str, String)]) -> Result<(), Error> {
        let width = fields
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, _)| key.chars().count())
            .max()
            .unwrap_or(0);
        for (key, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            let mut lines = value.lines();
            let first = printable(lines.next().unwrap_or_default());
            self.line(format!("{key:<width$}  {first}"))?;
            for line in lines {
                self.line(format!("{:<width$}  {}", "", printable(line)))?;
            }
        }
        Ok(())
    }
}

/// Control characters become `\u{..}`.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control();
            c.escape_unicode()
                .take_while(move |_| escaped)
                .chain((!escaped).then_some(c))
        })
        .collect()
}

fn descriptor(name: &str) -> MessageDescriptor {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        DescriptorPool::decode(agentd_proto::FILE_DESCRIPTOR_SET)
            .expect("the descriptor set was made together with this program")
    });
    pool.get_message_by_name(&format!("agent.v1.{name}"))
        .expect("every caller names a message of the API")
}

/// A message of the API from one JSON value, and nothing behind it. Unknown fields are errors.
pub fn from_json<M: prost::Message + Default>(name: &str, text: &str) -> Result<M, String> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let message = DynamicMessage::deserialize(descriptor(name), &mut deserializer)
        .and_then(|message| deserializer.end().map(|()| message))
        .map_err(|error| error.to_string())?;
    message.transcode_to().map_err(|error| error.to_string())
}

fn to_json<M: prost::Message>(name: &str, message: &M, pretty: bool) -> Result<Vec<u8>, Error> {
    let descriptor = descriptor(name);
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .expect("both sides come from the same descriptor");
    // 64-bit numbers stay numbers and names are those of the .proto files: jq users read both.
    let options = SerializeOptions::new()
        .skip_default_fields(false)
        .stringify_64_bit_integers(false)
        .use_proto_field_name(true);
    let written = if pretty {
        let mut serializer = serde_json::Serializer::pretty(Vec::new());
        dynamic
            .serialize_with_options(&mut serializer, &options)
            .map(|()| serializer.into_inner())
    } else {
        let mut serializer = serde_json::Serializer::new(Vec::new());
        dynamic
            .serialize_with_options(&mut serializer, &options)
            .map(|()| serializer.into_inner())
    };
    written.map_err(|error| Error::Output(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use agentd_proto::v1;

    use super::*;

    #[test]
    fn a_message_is_read_from_json_and_unknown_fields_are_refused() {
        let read = |text| from_json::<v1::AddWorkloadRequest>("AddWorkloadRequest", text);
        let request = read(r#"{"id": "a", "netns": "/run/netns/a", "labels": {"x": "y"}}"#);
        let request = request.expect("is right");
        assert_eq!((request.id.as_str(), request.labels.len()), ("a", 1));
        assert!(read(r#"{"id": "a", "nets": "/run/netns/a"}"#).is_err());
        assert!(read(r#"{"id": "a"} {"id": "b"}"#).is_err());
        assert!(read(r#"{"id": "a""#).is_err());
    }

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        assert_eq!(printable("a\u{1b}[2Jé"), "a\\u{1b}[2Jé");
    }

    #[test]
    fn json_has_names_of_the_proto_files_enum_names_and_plain_numbers() {
        let workload = v1::Workload {
            id: "web".into(),
            generation: 7,
            state: v1::WorkloadState::Programmed.into(),
            created_at: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 0,
            }),
            ..Default::default()
        };
        let json = to_json("Workload", &workload, false).expect("serialises");
        let value: serde_json::Value = serde_json::from_slice(&json).expect("is JSON");
        assert_eq!(value["generation"], 7);
        assert_eq!(value["state"], "WORKLOAD_STATE_PROGRAMMED");
        assert_eq!(value["created_at"], "2023-11-14T22:13:20Z");
        assert_eq!(value["interface_name"], "");
    }
}
