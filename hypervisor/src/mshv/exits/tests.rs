//! Intercepts and what they do to a processor made of plain values.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    super::{
        emulate::Mode,
        message::{self, InstructionBytes},
        slots::tests::{Pages, slot},
    },
    *,
};
use crate::SlotFlags;

/// A vCPU that pages the way the map says; unmapped pages are not present.
#[derive(Default)]
struct Model {
    file: RegisterFile,
    segments: [SegmentSlot; 6],
    pages: BTreeMap<u64, Translation>,
    read_only: BTreeSet<u64>,
    injected: Vec<Exception>,
    shadow_ended: bool,
    translations: usize,
    segment_reads: usize,
}

impl Processor for Model {
    fn registers(&mut self) -> Result<RegisterFile, HypervisorError> {
        Ok(self.file)
    }
    fn segments(&mut self) -> Result<[SegmentSlot; 6], HypervisorError> {
        self.segment_reads += 1;
        Ok(self.segments)
    }
    fn set_registers(&mut self, registers: &RegisterFile) -> Result<(), HypervisorError> {
        self.file = RegisterFile { segments: Default::default(), ..*registers };
        Ok(())
    }
    fn advance(&mut self, rip: u64, changed: &[(usize, u64)]) -> Result<(), HypervisorError> {
        self.file.rip = rip;
        for (number, value) in changed {
            self.file.general[*number] = *value;
        }
        Ok(())
    }
    fn translate(&mut self, linear_page: u64, access: Access) -> Result<Translation, HypervisorError> {
        assert_eq!(linear_page % 4096, 0);
        self.translations += 1;
        if access == Access::Write && self.read_only.contains(&linear_page) {
            return Ok(Translation::Forbidden);
        }
        Ok(self.pages.get(&linear_page).cloned().unwrap_or(Translation::NotPresent))
    }
    fn inject(&mut self, exception: Exception) -> Result<(), HypervisorError> {
        self.injected.push(exception);
        Ok(())
    }
    fn clear_interrupt_shadow(&mut self) -> Result<(), HypervisorError> {
        self.shadow_ended = true;
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    PortRead(u16, usize),
    PortWrite(u16, Vec<u8>),
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

/// Devices that read as bytes counted from 0xa0.
#[derive(Default)]
struct Bus(Vec<Seen>);

fn count(data: &mut [u8]) {
    for (byte, n) in data.iter_mut().zip(0xa0..) {
        *byte = n;
    }
}

impl ExitBus for Bus {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.0.push(Seen::PortRead(port, data.len()));
        count(data);
    }
    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.0.push(Seen::PortWrite(port, data.to_vec()));
    }
    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        self.0.push(Seen::Read(address, data.len()));
        count(data);
    }
    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        self.0.push(Seen::Write(address, data.to_vec()));
    }
}

/// Code at linear 0x1000, data at linear 0x5000; four pages of memory at physical 0x10_0000, of
/// which linear 0x1000 to 0x4fff shows the first ones; a device at physical 0xd000_0000.
struct Scene {
    model: Model,
    bus: Bus,
    slots: RwLock<SlotTable>,
    pages: Box<Pages>,
    retries: Retries,
}

const DEVICE: u64 = 0xd000_0000;

impl Scene {
    fn new(flags: SlotFlags) -> Self {
        let mut pages = Box::new(Pages([0; 4 * 4096]));
        let mut table = SlotTable::default();
        table.insert(slot(0, 0x10_0000, &mut pages, flags));
        let mut model = Model {
            file: RegisterFile { rip: 0x1000, rflags: 2, ..Default::default() },
            ..Default::default()
        };
        for page in 0..4 {
            model.pages.insert(0x1000 * (page + 1), Translation::Page(0x10_0000 + 0x1000 * page));
        }
        model.pages.insert(0x5000, Translation::Page(DEVICE));
        model.file.general[6] = 0x5010;
        model.file.general[7] = 0x2000;
        Self { model, bus: Bus::default(), slots: RwLock::new(table), pages, retries: Retries::default() }
    }

    fn answer(&mut self, intercept: Intercept) -> VcpuExit {
        answer(&intercept, &mut self.model, &self.slots, &mut self.retries, &mut self.bus).unwrap()
    }

    fn failure(&mut self, intercept: Intercept) -> String {
        let before = self.model.file;
        match self.answer(intercept) {
            VcpuExit::Failed(text) => {
                assert_eq!(self.model.file, before, "{text}");
                text
            }
            other => panic!("{other:?}"),
        }
    }
}

fn header(access: AccessKind) -> Header {
    Header {
        rip: 0x1000,
        instruction_length: 0,
        access,
        mode: Mode::Bits64,
        code_base: 0,
        cpl: 0,
        interrupt_shadow: false,
    }
}

fn memory_intercept(access: AccessKind, physical: u64, bytes: &[u8]) -> MemoryIntercept {
    MemoryIntercept {
        header: header(access),
        linear: Some(0x5000 + physical % 4096),
        physical,
        instruction: InstructionBytes::of(bytes),
    }
}

fn port_intercept(access: AccessKind, size: u8, rax: u64, bytes: &[u8]) -> PortIntercept {
    PortIntercept {
        header: Header { instruction_length: 1, ..header(access) },
        port: 0x3f8,
        size,
        string: false,
        rax,
        instruction: InstructionBytes::of(bytes),
    }
}

#[test]
fn a_port_is_read_into_part_of_the_accumulator() {
    for (size, rax) in [(1, 0x1122_3344_5566_77a0), (2, 0x1122_3344_5566_a1a0), (4, 0xa3a2_a1a0)] {
        let mut scene = Scene::new(SlotFlags::empty());
        let intercept = port_intercept(AccessKind::Read, size, 0x1122_3344_5566_7788, &[0xec]);
        assert_eq!(scene.answer(Intercept::Port(intercept)), VcpuExit::Handled);
        assert_eq!((scene.model.file.general[0], scene.model.file.rip), (rax, 0x1001));
        assert_eq!(scene.bus.0, [Seen::PortRead(0x3f8, size.into())]);
    }
}

#[test]
fn a_port_is_written_from_the_accumulator() {
    let mut scene = Scene::new(SlotFlags::empty());
    let mut intercept = port_intercept(AccessKind::Write, 2, 0x4433_2211, &[0x66, 0xef]);
    intercept.header.instruction_length = 0;
    intercept.header.interrupt_shadow = true;
    assert_eq!(scene.answer(Intercept::Port(intercept)), VcpuExit::Handled);
    assert_eq!(scene.bus.0, [Seen::PortWrite(0x3f8, vec![0x11, 0x22])]);
    assert_eq!(scene.model.file.rip, 0x1002, "the length comes from the bytes");
    assert!(scene.model.shadow_ended);
}

#[test]
fn bad_port_intercepts_fail_by_name() {
    let mut scene = Scene::new(SlotFlags::empty());
    let text = scene.failure(Intercept::Port(port_intercept(AccessKind::Read, 3, 0, &[0xec])));
    assert_eq!(text, "access of 3 bytes to port 0x3f8");
    let text = scene.failure(Intercept::Port(port_intercept(AccessKind::Execute, 1, 0, &[0xec])));
    assert_eq!(text, "port 0x3f8 was executed");
    let mut no_length = port_intercept(AccessKind::Read, 1, 0, &[]);
    no_length.header.instruction_length = 0;
    assert_eq!(scene.failure(Intercept::Port(no_length)), "no instruction at 0x1000, which used a port");
    assert!(scene.bus.0.is_empty());
}

#[test]
fn a_string_goes_out() {
    let mut scene = Scene::new(SlotFlags::empty());
    scene.pages.0[..3].copy_from_slice(b"abc");
    (scene.model.file.general[6], scene.model.file.general[RCX], scene.model.file.general[RDX]) =
        (0x1000, 3, 0x3f8);
    let mut intercept = port_intercept(AccessKind::Write, 1, 0, &[0xf3, 0x6e]);
    intercept.string = true;
    assert_eq!(scene.answer(Intercept::Port(intercept)), VcpuExit::Handled);
    assert_eq!(scene.bus.0, b"abc".map(|byte| Seen::PortWrite(0x3f8, vec![byte])));
    assert_eq!((scene.model.file.general[RCX], scene.model.file.rip), (0, 0x1002));
    assert_eq!(scene.model.translations, 1, "a page is translated once");
}

#[test]
fn a_string_comes_in_and_marks_its_page() {
    let mut scene = Scene::new(SlotFlags::LOG_DIRTY);
    (scene.model.file.general[RCX], scene.model.file.general[RDX]) = (2, 0x3f8);
    let mut intercept = port_intercept(AccessKind::Read, 4, 0, &[0xf3, 0x6d]);
    intercept.string = true;
    assert_eq!(scene.answer(Intercept::Port(intercept)), VcpuExit::Handled);
    assert_eq!(scene.pages.0[0x1000..0x1008], [0xa0, 0xa1, 0xa2, 0xa3, 0xa0, 0xa1, 0xa2, 0xa3]);
    let mut bitmap = [0];
    scene.slots.write().merge_written(0, &mut bitmap);
    assert_eq!(bitmap, [0b10]);
}

#[test]
fn a_string_instruction_that_was_exchanged_is_not_run() {
    let mut scene = Scene::new(SlotFlags::empty());
    scene.model.file.general[RDX] = 0x3f9;
    let mut intercept = port_intercept(AccessKind::Write, 1, 0, &[0x6e]);
    intercept.string = true;
    assert!(scene.failure(Intercept::Port(intercept)).ends_with("the instruction is another one"));
    scene.model.file.general[RDX] = 0x3f8;
    intercept.instruction = InstructionBytes::of(&[0x88, 0x07]);
    assert!(scene.failure(Intercept::Port(intercept)).ends_with("the instruction is another one"));
    // The other way round: a memory intercept gives no right to a port.
    let exchanged = memory_intercept(AccessKind::Read, DEVICE, &[0x6e]);
    let text = scene.failure(Intercept::Memory(exchanged));
    assert_eq!(text, "access to 0xd0000000 at 0x1000: the instruction is one for ports");
    assert!(scene.bus.0.is_empty());
}

#[test]
fn a_device_is_read_and_written() {
    let mut scene = Scene::new(SlotFlags::empty());
    let load = memory_intercept(AccessKind::Read, DEVICE + 0x10, &[0x8b, 0x06]); // mov eax, [rsi]
    assert_eq!(scene.answer(Intercept::Memory(load)), VcpuExit::Handled);
    assert_eq!(scene.bus.0, [Seen::Read(DEVICE + 0x10, 4)]);
    assert_eq!((scene.model.file.general[0], scene.model.file.rip), (0xa3a2_a1a0, 0x1002));
    let store = memory_intercept(AccessKind::Write, DEVICE + 0x10, &[0x66, 0x89, 0x06]); // mov [rsi], ax
    assert_eq!(scene.answer(Intercept::Memory(store)), VcpuExit::Handled);
    assert_eq!(scene.bus.0[1], Seen::Write(DEVICE + 0x10, vec![0xa0, 0xa1]));
    assert_eq!((scene.model.translations, scene.model.segment_reads), (0, 0), "the intercept says it all");
}

#[test]
fn an_instruction_that_was_not_sent_is_fetched() {
    // mov dword [rsi + 0x10], 0x04030201, over a page boundary
    let code = [0xc7, 0x46, 0x10, 1, 2, 3, 4];
    for at_hand in 0..code.len() {
        let mut scene = Scene::new(SlotFlags::empty());
        scene.pages.0[0xffd..0xffd + code.len()].copy_from_slice(&code);
        scene.model.file.rip = 0x1ffd;
        let mut intercept = memory_intercept(AccessKind::Write, DEVICE + 0x20, &code[..at_hand]);
        intercept.header.rip = 0x1ffd;
        assert_eq!(scene.answer(Intercept::Memory(intercept)), VcpuExit::Handled);
        assert_eq!(scene.bus.0, [Seen::Write(DEVICE + 0x20, vec![1, 2, 3, 4])]);
        assert_eq!(scene.model.file.rip, 0x2004);
    }
}

#[test]
fn an_instruction_that_cannot_be_fetched() {
    let mut scene = Scene::new(SlotFlags::empty());
    let mut intercept = memory_intercept(AccessKind::Read, DEVICE, &[]);
    intercept.header.rip = 0x5000;
    scene.model.file.rip = 0x5000;
    let text = scene.failure(Intercept::Memory(intercept));
    assert_eq!(text, "access to 0xd0000000 at 0x5000: no memory at 0xd0000000, where the guest executes");
    // A page that went away meanwhile is the guest's to bring back.
    intercept.header.rip = 0x9000;
    assert_eq!(scene.answer(Intercept::Memory(intercept)), VcpuExit::Handled);
    assert_eq!(scene.model.injected, [Exception::PageFault { address: 0x9000, error_code: 0 }]);
    assert!(scene.bus.0.is_empty());
}

#[test]
fn a_copy_from_a_device_to_memory() {
    let mut scene = Scene::new(SlotFlags::empty());
    scene.model.file.general[RCX] = 2;
    let intercept = memory_intercept(AccessKind::Read, DEVICE + 0x10, &[0xf3, 0xa5]); // rep movsd
    assert_eq!(scene.answer(Intercept::Memory(intercept)), VcpuExit::Handled);
    assert_eq!(scene.bus.0, [Seen::Read(DEVICE + 0x10, 4), Seen::Read(DEVICE + 0x14, 4)]);
    assert_eq!(scene.pages.0[0x1000..0x1008], [0xa0, 0xa1, 0xa2, 0xa3, 0xa0, 0xa1, 0xa2, 0xa3]);
}

#[test]
fn a_fault_of_the_other_operand_is_injected() {
    for (translation, cpl, error_code) in [
        (Translation::NotPresent, 0, 0b0010),
        (Translation::NotPresent, 3, 0b0110),
        (Translation::Forbidden, 3, 0b0111),
        (Translation::ReservedBits, 0, 0b1011),
    ] {
        let mut scene = Scene::new(SlotFlags::empty());
        scene.model.pages.insert(0x2000, translation);
        let mut intercept = memory_intercept(AccessKind::Read, DEVICE + 0x10, &[0xa5]); // movsd
        intercept.header.cpl = cpl;
        let before = scene.model.file;
        assert_eq!(scene.answer(Intercept::Memory(intercept)), VcpuExit::Handled);
        assert_eq!(scene.model.injected, [Exception::PageFault { address: 0x2000, error_code }]);
        assert_eq!((scene.model.file, scene.bus.0.len()), (before, 0));
    }
    let mut scene = Scene::new(SlotFlags::empty());
    scene.model.pages.insert(0x2000, Translation::Impossible("result 9".into()));
    let intercept = memory_intercept(AccessKind::Read, DEVICE + 0x10, &[0xa5]);
    let text = scene.failure(Intercept::Memory(intercept));
    assert_eq!(text, "access to 0xd0000010 at 0x1000: no translation of 0x2000: result 9");
}

#[test]
fn a_read_gives_no_right_to_write() {
    // The device's page is read-only to the guest, and the copy goes from it into it.
    for bytes in [&[0xa5][..], &[0x09, 0x06], &[0x87, 0x06]] {
        let mut scene = Scene::new(SlotFlags::empty());
        scene.model.read_only.insert(0x5000);
        scene.model.file.general[7] = 0x5020;
        let before = scene.model.file;
        let intercept = memory_intercept(AccessKind::Read, DEVICE + 0x10, bytes);
        assert_eq!(scene.answer(Intercept::Memory(intercept)), VcpuExit::Handled);
        assert!(
            matches!(scene.model.injected[..], [Exception::PageFault { error_code: 0b0011, .. }]),
            "{bytes:02x?}: {:?}",
            scene.model.injected
        );
        assert_eq!((scene.model.file, scene.bus.0.len()), (before, 0));
    }
}

#[test]
fn a_device_register_is_changed() {
    for access in [AccessKind::Read, AccessKind::Write] {
        let mut scene = Scene::new(SlotFlags::empty());
        let intercept = memory_intercept(access, DEVICE + 0x10, &[0x80, 0x0e, 0x0f]); // or byte [rsi], 0x0f
        assert_eq!(scene.answer(Intercept::Memory(intercept)), VcpuExit::Handled);
        assert_eq!(scene.bus.0, [Seen::Read(DEVICE + 0x10, 1), Seen::Write(DEVICE + 0x10, vec![0xaf])]);
    }
}

#[test]
fn an_access_over_a_page_boundary_is_cut() {
    let mut scene = Scene::new(SlotFlags::empty());
    scene.model.pages.insert(0x6000, Translation::Page(0x10_3000));
    scene.pages.0[0x3000..0x3002].copy_from_slice(&[1, 2]);
    scene.model.file.general[6] = 0x5ffe;
    let intercept = memory_intercept(AccessKind::Read, DEVICE + 0xffe, &[0x8b, 0x06]); // mov eax, [rsi]
    assert_eq!(scene.answer(Intercept::Memory(intercept)), VcpuExit::Handled);
    assert_eq!(scene.bus.0, [Seen::Read(DEVICE + 0xffe, 2)]);
    assert_eq!(scene.model.file.general[0], 0x0201_a1a0);

    scene.model.file.general[6] = u64::MAX - 1;
    let intercept = memory_intercept(AccessKind::Read, DEVICE + 0xffe, &[0x8b, 0x06]);
    assert_eq!(scene.answer(Intercept::Memory(intercept)), VcpuExit::Handled);
    assert_eq!(scene.model.injected, [Exception::Protection]);
}

#[test]
fn a_write_to_read_only_memory_goes_to_the_bus() {
    let mut scene = Scene::new(SlotFlags::READ_ONLY);
    scene.pages.0[0x3000] = 0xf0;
    scene.model.file.general[6] = 0x4000;
    let intercept = MemoryIntercept {
        linear: Some(0x4000),
        ..memory_intercept(AccessKind::Write, 0x10_3000, &[0x80, 0x0e, 0x0f]) // or byte [rsi], 0x0f
    };
    assert_eq!(scene.answer(Intercept::Memory(intercept)), VcpuExit::Handled);
    assert_eq!(scene.bus.0, [Seen::Write(0x10_3000, vec![0xff])]);
    assert_eq!(scene.pages.0[0x3000], 0xf0);
}

#[test]
fn memory_that_is_there_is_tried_again_and_not_for_ever() {
    let mut scene = Scene::new(SlotFlags::empty());
    let intercept = Intercept::Memory(memory_intercept(AccessKind::Write, 0x10_0000, &[]));
    for _ in 0..RETRIES {
        assert_eq!(scene.answer(intercept), VcpuExit::Handled);
    }
    assert_eq!(scene.failure(intercept), "access to 0x100000 at 0x1000: memory is there, and is not found");
    let other = Intercept::Memory(memory_intercept(AccessKind::Write, 0x10_0008, &[]));
    assert_eq!(scene.answer(other), VcpuExit::Handled);
    assert_eq!(scene.answer(intercept), VcpuExit::Handled, "the count begins anew");
    assert!(scene.bus.0.is_empty());
}

#[test]
fn what_cannot_be_done_fails_by_name() {
    let mut scene = Scene::new(SlotFlags::empty());
    let unknown = memory_intercept(AccessKind::Write, DEVICE, &[0x0f, 0xb1, 0x0e]); // cmpxchg [rsi], ecx
    assert_eq!(
        scene.failure(Intercept::Memory(unknown)),
        "access to 0xd0000000 at 0x1000: cannot emulate instruction Cmpxchg_rm32_r32 (0f b1 0e)"
    );
    let nonsense = memory_intercept(AccessKind::Write, DEVICE, &[0x06, 0x90, 0x90]);
    assert_eq!(
        scene.failure(Intercept::Memory(nonsense)),
        "access to 0xd0000000 at 0x1000: not an instruction: 06 90 90"
    );
    let executed = memory_intercept(AccessKind::Execute, DEVICE, &[]);
    assert_eq!(
        scene.failure(Intercept::Memory(executed)),
        "the guest executes at 0xd0000000, where no memory is (instruction pointer 0x1000)"
    );
    assert_eq!(scene.failure(Intercept::Other(0x77)), "intercept message of unknown type 0x77");
    assert!(scene.failure(Intercept::Exception { vector: 6, rip: 9 }).starts_with("exception 6 at 0x9"));
}

#[test]
fn the_other_exits() {
    let mut scene = Scene::new(SlotFlags::empty());
    assert_eq!(scene.answer(Intercept::Nothing), VcpuExit::Handled);
    assert_eq!(scene.answer(Intercept::Halt), VcpuExit::Halted);
    assert_eq!(scene.answer(Intercept::UnrecoverableException), VcpuExit::Reset);
    assert_eq!(scene.answer(Intercept::EndOfInterrupt(0x31)), VcpuExit::EndOfInterrupt(0x31));
    assert_eq!(scene.failure(Intercept::EndOfInterrupt(256)), "end of interrupt 256, which is no vector");

    let cpuid = CpuidIntercept { header: header(AccessKind::Execute), answer: [1, 2, 3, 4] };
    assert_eq!(scene.answer(Intercept::Cpuid(cpuid)), VcpuExit::Handled);
    assert_eq!(scene.model.file.general[..4], [1, 2, 3, 4]);
    assert_eq!(scene.model.file.rip, 0x1002);

    let read = MsrIntercept { header: header(AccessKind::Read), number: 0x1a0 };
    assert_eq!(scene.answer(Intercept::Msr(read)), VcpuExit::Handled);
    assert_eq!(scene.model.file.general[..4], [0, 2, 0, 4]);
    let write = MsrIntercept { header: header(AccessKind::Write), number: 0x1a0 };
    assert_eq!(scene.answer(Intercept::Msr(write)), VcpuExit::Handled);
    assert_eq!(scene.model.file.general[..4], [0, 2, 0, 4]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// No message, with no registers, does worse than an exit that says why.
    #[test]
    fn hostile_messages(
        message_type in prop_oneof![
            any::<u32>(),
            Just(0x8000_0000_u32),
            Just(0x8000_0001_u32),
            0x8001_0000_u32..0x8001_0008,
        ],
        mut payload in proptest::collection::vec(any::<u8>(), message::PAYLOAD_BYTES),
        code in proptest::sample::select(vec![&[0x8b_u8, 0x06][..], &[0xf3, 0xa5], &[0xf3, 0x6e], &[0x09, 0x06], &[]]),
        general in any::<[u64; 16]>(),
        near in any::<bool>(),
    ) {
        let bytes_at = std::mem::offset_of!(mshv_bindings::hv_x64_memory_intercept_message, instruction_bytes);
        payload[bytes_at..bytes_at + code.len()].copy_from_slice(code);
        let mut scene = Scene::new(SlotFlags::LOG_DIRTY);
        scene.model.file.general = if near { general.map(|value| 0x1000 + value % 0x6000) } else { general };
        let intercept = message::decode(message_type, &payload.try_into().unwrap());
        let exit = scene.answer(intercept);
        prop_assert!(exit != VcpuExit::Failed(String::new()));
        prop_assert!(scene.bus.0.len() <= 4 * 1024);
    }
}
