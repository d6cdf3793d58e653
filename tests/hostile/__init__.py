"""Campaigns of hostile input on every boundary. Each has a short form, always of the same choices, and a
long one:

    make hostile                      all long ones, some 25 minutes on two processors
    VMSESSION_SOAK_SECONDS=60 VMSESSION_SEED=a1 pytest -m soak --timeout 0 tests/hostile/test_page.py
                                      one, for other than 120 seconds, with the choices of an earlier one

What they did stands in `hostile.CAMPAIGN.json`.

| campaign | who attacks whom |
|---|---|
| `test_rpc` | clients core, by every method |
| `test_fds` | clients core, beneath gRPC and on the fd channel |
| `test_engine` | engines core, by packets and by their ends |
| `test_packets` | core engines with sanitizers, by packets |
| `test_page` | VMMs engines, some with sanitizers, by pages and guest memory, through a real core |
| `test_guests` | guests their engines and VMMs |
| `tests/engine/test_soft_fuzz.py` | guests the software CPU, by random code in all modes: 200,000 runs |
| `test_hazards` | peers each other, by what the kernel lets them do to shared memory; short only |

While a core is attacked a witness must be served, and afterwards nothing may be left (`arena.py`).
"""
