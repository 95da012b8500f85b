//! Prefixes to messages: withdrawals, and announcements packed by attribute set.

use crate::{
    message::{Negotiated, Nlri},
    rib::{
        arena::NONE, export::ExportParameters, outputs::Outputs, prefix::Prefix, table::Table,
        types::Pulled,
    },
    wire::{EncodedAttributes, encode_announce, encode_withdraw},
};

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

    fn nlri(&self, route: u32) -> Nlri<K::Net> {
        // Where the peer asked for path identifiers, the one path we send has number 1.
        let path_id = u32::from(self.negotiated().add_path_send[K::FAMILY.index()]);
        Nlri {
            path_id,
            prefix: self.table.routes[route].key.net(),
        }
    }

    /// Everything; `announce` is sorted by attributes.
    pub(super) fn send(
        &self,
        withdraw: &[u32],
        announce: &[(u32, u32)],
        out: &mut Vec<u8>,
        pulled: &mut Pulled,
    ) {
        self.withdraw(withdraw, out, usize::MAX, &mut pulled.updates);
        self.announce(announce, out, usize::MAX, &mut pulled.updates);
    }

    /// Encodes until `limit` octets were appended; says how many prefixes were taken.
    pub(super) fn withdraw(
        &self,
        routes: &[u32],
        out: &mut Vec<u8>,
        limit: usize,
        updates: &mut u32,
    ) -> usize {
        let nlri: Vec<_> = routes.iter().map(|route| self.nlri(*route)).collect();
        let start = out.len();
        let mut done = 0;
        while done < nlri.len() && out.len() - start < limit {
            done += encode_withdraw(out, self.negotiated(), &nlri[done..]).max(1);
            *updates += 1;
        }
        done
    }

    /// As `withdraw`; each item is attributes and prefix, sorted by attributes.
    pub(super) fn announce(
        &self,
        items: &[(u32, u32)],
        out: &mut Vec<u8>,
        limit: usize,
        updates: &mut u32,
    ) -> usize {
        let start = out.len();
        let mut taken = 0;
        let mut nlri = Vec::new();
        for run in items.chunk_by(|a, b| a.0 == b.0) {
            debug_assert_ne!(run[0].0, NONE);
            let attributes = self.outputs.attributes(run[0].0);
            let encoded = EncodedAttributes::new(attributes, self.negotiated(), K::FAMILY);
            nlri.clear();
            nlri.extend(run.iter().map(|(_, route)| self.nlri(*route)));
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
