"""Two VMs, of two processes, talk through one page of memory: python -m examples.two_vms"""

import os
import subprocess
import sys

from vmm_client import Connection, Ram, Reason, Segment, connect

PAGE = 0x8000  # where both guests see it: a flag, then text
SENDER = bytes.fromhex(
    "be 14 00      "  # 0x00        mov si, message
    "bf 01 80      "  # 0x03        mov di, 0x8001
    "ac            "  # 0x06  next: lodsb
    "88 05         "  # 0x07        mov [di], al
    "47            "  # 0x09        inc di
    "84 c0         "  # 0x0a        test al, al
    "75 f8         "  # 0x0c        jnz next
    "c6 06 00 80 01"  # 0x0e        mov byte [0x8000], 1
    "f4            "  # 0x13        hlt
)
RECEIVER = bytes.fromhex(
    "80 3e 00 80 00"  # 0x00  wait: cmp byte [0x8000], 0
    "74 f9         "  # 0x05        je wait
    "be 01 80      "  # 0x07        mov si, 0x8001
    "ac            "  # 0x0a  next: lodsb
    "84 c0         "  # 0x0b        test al, al
    "74 04         "  # 0x0d        jz done
    "e6 e9         "  # 0x0f        out 0xe9, al
    "eb f7         "  # 0x11        jmp next
    "f4            "  # 0x13  done: hlt
)


def run(core: Connection, engine: str, code: bytes, page: Ram) -> str:
    """Run a guest until it halts; what it said."""
    said = ""
    with core.create_ram(4096) as ram, core.create_session(engine) as session:
        session.attach(ram, gpa=0)
        session.attach(page, gpa=PAGE)
        ram.write(0, code)
        vcpu = session.create_vcpu()
        for exit in vcpu.exits():  # noqa: A001 - each turn runs on with the answer given so far
            match exit.reason:
                case Reason.STARTUP:
                    vcpu.registers.cs = Segment(selector=0, attributes=0x9B, limit=0xFFFF, base=0)
                    vcpu.registers.rip = 0
                case Reason.PORT:
                    said += chr(exit.value)
                case Reason.HLT:
                    break
    return said


def sender(engine: str) -> None:
    """Offer a page, start the other VMM, and let the guest write."""
    with connect() as core, core.create_ram(4096) as page:
        share = page.share(os.getuid(), read_only=True)
        other = subprocess.Popen([sys.executable, "-m", "examples.two_vms", engine, share.name])
        run(core, engine, SENDER + b"Hello from another VM\0", page)
        other.wait()


def receiver(engine: str, share: str) -> None:
    """Take the page, and print what the guest reads there."""
    with connect() as core, core.accept(share) as page:
        print(run(core, engine, RECEIVER, page), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        receiver(*sys.argv[1:])
    else:
        sender(*sys.argv[1:] or [""])
