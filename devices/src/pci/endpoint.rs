//! The standard part of a PCI function: identity, capabilities, BARs and MSI-X.
//!
//! The wiring of a function is a consequence of its registers: a BAR is wired where its address
//! says while memory decoding is on. [`Endpoint::stage`] brings the staged wiring in line with the
//! registers, and is the same at boot, after a guest's write, and in a restore.

use std::sync::Arc;

use address_manager::{Conflict, Owner, Transaction, Window, WindowKind, Wired};
use log::warn;
use serde::{Deserialize, Serialize};
use vm_migration::LoadError;

use super::{
    bar::{BarRegister, BarShape, BarSpec, HandlerPart},
    config::{BAR0, BARS_END, COMMAND_MEMORY, ConfigSpace, INTERRUPT_LINE, Identity},
    msix::{self, MsixState, MsixTable},
};

/// What a configuration write asks the root to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigEffect {
    /// Nothing.
    None,
    /// Wire the BARs anew.
    Rewire,
}

/// Saved form of the standard part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointState {
    /// The command register.
    pub command: u16,
    /// The interrupt line register.
    pub interrupt_line: u8,
    /// Address bits of each BAR, in the order in which the function has them.
    pub bars: Vec<u64>,
    /// The vectors, for functions that have MSI-X.
    pub msix: Option<MsixState>,
}

/// One BAR: its registers, what it holds, where it is wired.
#[derive(Debug)]
struct Bar {
    register: BarRegister,
    shape: BarShape,
    placed: Placed,
}

/// Where a BAR is: its place in the window allocator and its wiring.
#[derive(Clone, Debug, Default)]
struct Placed {
    reserved: Option<(Window, u64)>,
    wired: Wired,
    /// Whether its registers ask for a place that it could not have.
    refused: bool,
}

/// The outcome of [`Endpoint::stage`], to be handed to [`Endpoint::committed`].
#[derive(Debug)]
pub struct StagedBars(Vec<Placed>);

/// The standard part of a function.
#[derive(Debug)]
pub struct Endpoint {
    owner: Owner,
    segment: u16,
    config: ConfigSpace,
    bars: Vec<Bar>,
    msix: Option<Msix>,
}

#[derive(Debug)]
struct Msix {
    table: Arc<MsixTable>,
    capability: u16,
}

impl Endpoint {
    /// A function of `segment` with no BARs and no capabilities. `id` is its device's id.
    pub fn new(id: &str, segment: u16, identity: Identity) -> Self {
        Self { owner: Owner::new(id), segment, config: ConfigSpace::new(identity), bars: vec![], msix: None }
    }

    /// The owner that this function's wiring bears.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Adds a capability; see [`ConfigSpace::add_capability`].
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        self.config.add_capability(id, body, writable)
    }

    /// Adds a BAR at `address` (from the layout; 0 leaves it to the guest). BARs keep the order in
    /// which they are added.
    ///
    /// # Panics
    /// The specification or the address is not valid; see [`BarRegister::new`].
    pub fn add_bar(&mut self, spec: BarSpec, address: u64, shape: BarShape) {
        self.bars.push(Bar { register: BarRegister::new(spec, address), shape, placed: Placed::default() });
    }

    /// Adds MSI-X: the capability, and the handlers of the table and the pending bits in BAR `bar`
    /// (its register number), which must be there already.
    ///
    /// # Panics
    /// There is no such BAR.
    pub fn add_msix(&mut self, table: Arc<MsixTable>, bar: u8, table_offset: u32, pending_offset: u32) {
        let count = table.count();
        let mut body = [0; 10];
        let (control, rest) = body.split_at_mut(2);
        control.copy_from_slice(&(count - 1).to_le_bytes());
        let (table_register, pending_register) = rest.split_at_mut(4);
        table_register.copy_from_slice(&(table_offset & !7 | u32::from(bar)).to_le_bytes());
        pending_register.copy_from_slice(&(pending_offset & !7 | u32::from(bar)).to_le_bytes());
        let capability = self.config.add_capability(msix::CAPABILITY_ID, &body, &[0, 0xc0]);
        let holder = self.bars.iter_mut().find(|holder| holder.register.spec().index == bar);
        let shape = &mut holder.expect("MSI-X needs its BAR").shape;
        shape.handlers.push(HandlerPart {
            offset: u64::from(table_offset & !7),
            size: u64::from(count) * msix::ENTRY_SIZE,
            handler: table.table_handler(),
        });
        shape.handlers.push(HandlerPart {
            offset: u64::from(pending_offset & !7),
            size: u64::from(count).div_ceil(64) * 8,
            handler: table.pending_handler(),
        });
        self.msix = Some(Msix { table, capability });
    }

    /// The vectors, if the function has any.
    pub fn msix(&self) -> Option<&Arc<MsixTable>> {
        self.msix.as_ref().map(|msix| &msix.table)
    }

    /// What BAR register `index` holds, for a device that changes its doorbells; to be followed by
    /// [`stage`](Self::stage).
    pub fn shape_mut(&mut self, index: u8) -> Option<&mut BarShape> {
        let bar = self.bars.iter_mut().find(|bar| bar.register.spec().index == index);
        bar.map(|bar| &mut bar.shape)
    }

    /// Each BAR's specification and, where the registers hold a valid one, address.
    pub fn bars(&self) -> impl Iterator<Item = (BarSpec, Option<u64>)> {
        self.bars.iter().map(|bar| (bar.register.spec(), bar.register.address()))
    }

    /// The configuration space without the BARs.
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// Whether the guest lets the function reach memory.
    pub fn bus_master(&self) -> bool {
        self.config.command() & super::config::COMMAND_BUS_MASTER != 0
    }

    /// The guest reads configuration space.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        if let Some((index, shift)) = bar_register(offset) {
            let bar = self.bars.iter().find(|bar| bar.register.has_register(index));
            let register = bar.map_or(0, |bar| bar.register.register(index)).to_le_bytes();
            for (byte, value) in data.iter_mut().zip(register.iter().skip(shift)) {
                *byte = *value;
            }
            return;
        }
        self.config.read(offset, data);
    }

    /// The guest writes configuration space.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect {
        if let Some((index, shift)) = bar_register(offset) {
            return self.write_bar(index, shift, data);
        }
        let before = self.config.command() & COMMAND_MEMORY;
        self.config.guest_write(offset, data);
        if let Some(msix) = &self.msix {
            let control = self.config.u16(msix.capability + 2) & (msix::ENABLE | msix::FUNCTION_MASK);
            if control != msix.table.control() {
                msix.table.set_control(control);
            }
        }
        let after = self.config.command() & COMMAND_MEMORY;
        if before == after { ConfigEffect::None } else { ConfigEffect::Rewire }
    }

    fn write_bar(&mut self, index: u8, shift: usize, data: &[u8]) -> ConfigEffect {
        let Some(bar) = self.bars.iter_mut().find(|bar| bar.register.has_register(index)) else {
            return ConfigEffect::None;
        };
        let mut register = bar.register.register(index).to_le_bytes();
        for (old, new) in register.iter_mut().skip(shift).zip(data) {
            *old = *new;
        }
        let before = bar.register;
        bar.register.set_register(index, u32::from_le_bytes(register));
        let decoding = self.config.command() & COMMAND_MEMORY != 0;
        if decoding && bar.register != before { ConfigEffect::Rewire } else { ConfigEffect::None }
    }

    /// Stages the wiring that the registers ask for in the place of what is wired. A BAR that the
    /// guest put where it cannot be (on another device, outside the host bridge's windows) is left
    /// unwired and logged, as hardware would leave it unanswered.
    pub fn stage(&self, transaction: &Transaction<'_>) -> StagedBars {
        let decoding = self.config.command() & COMMAND_MEMORY != 0;
        let staged = self.bars.iter().map(|bar| {
            // What does not decode is nowhere, and in nobody's way: firmware that deals addresses anew gives one
            // function the address that another has not given up yet.
            let address = bar.register.address().filter(|_| decoding);
            let mut placed = self.reserve(bar, address, transaction);
            placed.refused = false;
            let reserved = placed.reserved.map(|(_, base)| base);
            let wanted = match address {
                Some(address) if reserved == Some(address) => bar.shape.at(address, &self.owner),
                _ => {
                    placed.refused = address.is_some();
                    Wired::default()
                }
            };
            match transaction.replace(&placed.wired, wanted) {
                Ok(wired) => placed.wired = wired,
                Err(conflict) => self.unwire(&mut placed, &conflict, transaction),
            }
            placed
        });
        StagedBars(staged.collect())
    }

    /// Takes note that what [`stage`](Self::stage) staged has been committed. Tells whether something has become free by
    /// it that a BAR of another function may have been [refused](Self::is_refused) for.
    pub fn committed(&mut self, staged: StagedBars) -> bool {
        let mut gave_up = false;
        for (bar, placed) in self.bars.iter_mut().zip(staged.0) {
            let before = std::mem::replace(&mut bar.placed, placed);
            gave_up |= before.reserved.is_some() && before.reserved != bar.placed.reserved;
        }
        gave_up
    }

    /// Whether a BAR is not where the registers say, because something else was there. To be
    /// [staged](Self::stage) again when that may be gone.
    pub fn is_refused(&self) -> bool {
        self.bars.iter().any(|bar| bar.placed.refused)
    }

    /// Takes the function out of the address map: stages the removal of its wiring and gives its
    /// windows back.
    pub fn unplug(&self, transaction: &Transaction<'_>) {
        for bar in &self.bars {
            if let Err(conflict) = transaction.remove(&bar.placed.wired) {
                warn!("{}: {conflict}", self.owner);
            }
            self.release(bar.placed.reserved, transaction);
        }
    }

    /// Moves a BAR's place in the window allocator to `address`, if that is a place at all; to nowhere if it is `None`.
    fn reserve(&self, bar: &Bar, address: Option<u64>, transaction: &Transaction<'_>) -> Placed {
        let mut placed = bar.placed.clone();
        if placed.reserved.map(|(_, base)| base) == address {
            return placed;
        }
        self.release(placed.reserved.take(), transaction);
        let Some(address) = address else { return placed };
        let size = bar.register.spec().size;
        for kind in [WindowKind::Mmio64, WindowKind::Mmio32] {
            let window = Window { kind, segment: self.segment };
            match transaction.reserve(window, address, size, &self.owner) {
                Ok(()) => {
                    placed.reserved = Some((window, address));
                    return placed;
                }
                Err(error) => log::debug!("{}: BAR {}: {error}", self.owner, bar.register.spec().index),
            }
        }
        warn!("{}: BAR {} cannot be at {address:#x}: left unwired", self.owner, bar.register.spec().index);
        placed
    }

    fn release(&self, reserved: Option<(Window, u64)>, transaction: &Transaction<'_>) {
        if let Some((window, base)) = reserved
            && let Err(error) = transaction.release(window, base, &self.owner)
        {
            warn!("{}: {error}", self.owner);
        }
    }

    fn unwire(&self, placed: &mut Placed, why: &Conflict, transaction: &Transaction<'_>) {
        warn!("{}: BAR left unwired: {why}", self.owner);
        placed.refused = true;
        if let Err(conflict) = transaction.remove(&placed.wired) {
            warn!("{}: {conflict}", self.owner);
        }
        placed.wired = Wired::default();
    }

    /// Command register and vectors as after power-on; BARs keep their addresses, as the layout has
    /// them. To be followed by [`stage`](Self::stage).
    pub fn reset(&mut self) {
        self.config.set_u16(super::config::COMMAND, 0);
        if let Some(msix) = &self.msix {
            msix.table.reset();
            let size = self.config.u16(msix.capability + 2) & !(msix::ENABLE | msix::FUNCTION_MASK);
            self.config.set_u16(msix.capability + 2, size);
        }
    }

    /// The saved form.
    pub fn save(&self) -> EndpointState {
        let mut line = [0];
        self.config.read(INTERRUPT_LINE, &mut line);
        EndpointState {
            command: self.config.command(),
            interrupt_line: line[0],
            bars: self.bars.iter().map(|bar| bar.register.raw_address()).collect(),
            msix: self.msix.as_ref().map(|msix| msix.table.save()),
        }
    }

    /// Takes over a saved form. To be followed by [`stage`](Self::stage), once the function has
    /// loaded what its BARs hold.
    ///
    /// # Errors
    /// A field does not fit this function.
    pub fn load(&mut self, state: &EndpointState) -> Result<(), LoadError> {
        let EndpointState { command, interrupt_line, bars, msix } = state;
        if bars.len() != self.bars.len() {
            let why = format!("{} BARs, the device has {}", bars.len(), self.bars.len());
            return Err(LoadError::field("pci.bars", why));
        }
        for (number, (bar, address)) in self.bars.iter_mut().zip(bars).enumerate() {
            bar.register.set_address(*address);
            if bar.register.raw_address() != *address {
                let why = format!("{address:#x} is not aligned to {:#x}", bar.register.spec().size);
                return Err(LoadError::field(format_args!("pci.bars[{number}]"), why));
            }
        }
        self.config.guest_write(super::config::COMMAND, &command.to_le_bytes());
        if self.config.command() != *command {
            return Err(LoadError::field("pci.command", format!("{command:#x} has bits the device lacks")));
        }
        self.config.set(INTERRUPT_LINE, &[*interrupt_line]);
        match (&self.msix, msix) {
            (Some(here), Some(saved)) => {
                here.table.load(saved)?;
                let size = self.config.u16(here.capability + 2) & !(msix::ENABLE | msix::FUNCTION_MASK);
                self.config.set_u16(here.capability + 2, size | saved.control);
                Ok(())
            }
            (None, None) => Ok(()),
            (Some(_), None) => Err(LoadError::field("pci.msix", "missing")),
            (None, Some(_)) => Err(LoadError::field("pci.msix", "the device has no MSI-X")),
        }
    }
}

/// Register number and byte in it, of an offset in the BARs.
fn bar_register(offset: u16) -> Option<(u8, usize)> {
    if !(BAR0..BARS_END).contains(&offset) {
        return None;
    }
    let at = offset - BAR0;
    Some((u8::try_from(at / 4).ok()?, usize::from(at % 4)))
}
