//! Prefixes to messages: withdrawals, and announcements packed by attribute set.

use crate::{
    message::{Negotiated, Nlri},
    rib::{
        arena::NONE, export::ExportParameters, outputs::Outputs, prefix::Prefix, table::Table,
        types::Pulled,
    },
    wire::{EncodedAttributes, encode_announce, encode_withdraw},
};

/// One path to be announced or withdrawn, in the order in which announcements are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Item {
    /// Attributes as sent; of no meaning for a withdrawal.
    pub(super) sent: u32,
    pub(super) route: u32,
    pub(super) path_id: u32,
}

/// Encodes prefixes.
pub(super) struct Sender<'a, K> {
    pub(super) table: &'a Table<K>,
    pub(super) outputs: &'a Outputs,
    pub(super) parameters: &'a ExportParameters,
}

impl<K: Prefix> Sender<'_, K> {
    fn negotiated(&self) -> &Negotiated {
        &self.parameters.negotiated
    }

    fn nlri(&self, item: &Item) -> Nlri<K::Net> {
        Nlri {
            path_id: item.path_id,
            prefix: self.table.routes[item.route].key.net(),
        }
    }

    /// Everything; `announce` is sorted by attributes.
    pub(super) fn send(
        &self,
        withdraw: &[Item],
        announce: &[Item],
        out: &mut Vec<u8>,
        pulled: &mut Pulled,
    ) {
        self.withdraw(withdraw, out, usize::MAX, &mut pulled.updates);
        self.announce(announce, out, usize::MAX, &mut pulled.updates);
    }

    /// Encodes until `limit` octets were appended; says how many prefixes were taken.
    pub(super) fn withdraw(
        &self,
        items: &[Item],
        out: &mut Vec<u8>,
        limit: usize,
        updates: &mut u32,
    ) -> usize {
        let nlri: Vec<_> = items.iter().map(|item| self.nlri(item)).collect();
        let start = out.len();
        let mut done = 0;
        while done < nlri.len() && out.len() - start < limit {
            done += encode_withdraw(out, self.negotiated(), &nlri[done..]).max(1);
            *updates += 1;
        }
        done
    }

    /// As `withdraw`; sorted by attributes.
    pub(super) fn announce(
        &self,
        items: &[Item],
        out: &mut Vec<u8>,
        limit: usize,
        updates: &mut u32,
    ) -> usize {
        let start = out.len();
        let mut taken = 0;
        let mut nlri = Vec::new();
        for run in items.chunk_by(|a, b| a.sent == b.sent) {
            debug_assert_ne!(run[0].sent, NONE);
            let attributes = self.outputs.attributes(run[0].sent);
            let encoded = EncodedAttributes::new(attributes, self.negotiated(), K::FAMILY);
            nlri.clear();
            nlri.extend(run.iter().map(|item| self.nlri(item)));
            let mut done = 0;
            while done < nlri.len() {
                if out.len() - start >= limit {
                    return taken + done;
                }
                match encode_announce(out, self.negotiated(), &encoded, &nlri[done..]) {
                    Ok(count) => {
                        done += count.max(1);
                        *updates += 1;
                    }
                    Err(error) => {
                        // Checked before an output is made.
                        tracing::error!(%error, "prefixes not sent");
                        done = nlri.len();
                    }
                }
            }
            taken += run.len();
        }
        taken
    }
}
