"""A VMM in forty lines: it needs no privilege, knows no device, and runs on any engine."""

from vmm_client import Reason, Segment, connect

CODE = bytes.fromhex(
    "be 11 00"  # 0x00        mov si, message
    "ac      "  # 0x03  next: lodsb
    "84 c0   "  # 0x04        test al, al
    "74 04   "  # 0x06        jz done
    "e6 e9   "  # 0x08        out 0xe9, al
    "eb f7   "  # 0x0a        jmp next
    "e4 60   "  # 0x0c  done: in al, 0x60
    "e6 e9   "  # 0x0e        out 0xe9, al
    "f4      "  # 0x10        hlt
)
MESSAGE = b"Hello \0"
CODE_SEGMENT = Segment(selector=0, attributes=0x9B, limit=0xFFFF, base=0)  # of real mode


def main(path: str | None = None) -> None:
    """Run the guest on the core at `path`, and print every exit."""
    with connect(path) as core, core.create_ram(64 * 1024) as ram:
        engine = next(engine.name for engine in core.engines() if engine.available)
        with core.create_session(engine, label="tiny") as session:
            session.attach(ram, gpa=0)
            ram.write(0, CODE + MESSAGE)
            vcpu = session.create_vcpu()
            for exit in vcpu.exits():  # noqa: A001 - each turn runs on with the answer given so far
                print(f"{engine}: {exit}")
                match exit.reason:
                    case Reason.STARTUP:  # begin at 0:0 instead of the reset vector
                        vcpu.registers.cs = CODE_SEGMENT
                        vcpu.registers.rip = 0
                    case Reason.PORT if exit.is_read:
                        exit.reply(ord("!"))
                    case Reason.HLT:
                        break


if __name__ == "__main__":
    main()
