"""`python -m stress.wan probe`: what bare TCP streams reach on an emulated network, as a share of
what it is configured to carry; `bench`: what an all-reduce reaches, with pccl and with gloo; and
`shell`, to look around inside a host.
"""

from __future__ import annotations

import argparse
import os
import sys

from stress.wan import bench, measure
from stress.wan.net import Network
from stress.wan.settings import WanUnavailable

PROBED_STREAMS = (1, 4, 8)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stress.wan", description=__doc__)
    parser.add_argument("what", choices=("probe", "bench", "shell"))
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rtt", type=float, default=100.0, help="ms (%(default)s)")
    parser.add_argument("--rate", type=float, default=1000.0, help="Mbit/s by host (%(default)s)")
    parser.add_argument("--flow", type=float, default=0.0, help="Mbit/s by flow, 0: no cap")
    parser.add_argument("--loss", type=float, default=0.0, help="probability by packet")
    parser.add_argument("--jitter", type=float, default=0.0, help="ms")
    parser.add_argument("--queue", type=float, default=100.0, help="ms (%(default)s)")
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--congestion", help="bbr, cubic, …: the machine's default unless given")
    parser.add_argument("--seconds", type=float, default=4.0, help="by measurement (%(default)s)")
    parser.add_argument("--ring", action="store_true", help="each host sends to the next at once")
    parser.add_argument("--host", type=int, default=0, help="of the shell")
    parser.add_argument("--mib", type=float, default=256.0, help="bench: bytes (%(default)s)")
    parser.add_argument("--repeats", type=int, default=4, help="bench: ops of each (%(default)s)")
    parser.add_argument(
        "--of", nargs="+", default=bench.IMPLEMENTATIONS,
        help="bench: these; pccl-N is pccl with N links a pair (%(default)s)",
    )  # fmt: skip
    return parser.parse_args()


def probe(net: Network, *, ring: bool, seconds: float) -> int:
    """Prints a line by number of streams. 1 when the emulator cannot be believed."""
    try:
        measured = net.calibrate(ring=ring)
    except measure.NotFaithful as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    print(
        f"without loss: {measured.streams} bare streams {measured.mbit:.0f} of "
        f"{measured.capacity_mbit:.0f} Mbit/s ({measured.share:.1%}), "
        f"packets at most {measured.late_ms_max:.1f} ms late"
    )
    link_mbit = net.settings.capacity_mbit(net.mtu, PROBED_STREAMS[-1] * net.hosts * 1000)
    for streams in PROBED_STREAMS:
        got = measure.bare_streams(
            net, measure.pairs_of(net, ring=ring), streams,
            seconds=seconds, warm_s=measure.warm_s(net),
        )  # fmt: skip
        print(
            f"{streams} stream{'s' if streams > 1 else ' '}: {got.mbit:5.0f} Mbit/s, "
            f"{got.mbit / link_mbit:6.1%} of the link, {got.share:6.1%} of what "
            f"{'so many flows' if streams > 1 else 'one flow'} may have"
        )
    return 0


def main() -> int:
    options = arguments()
    try:
        with Network(
            options.hosts, rtt_ms=options.rtt, rate_mbit=options.rate, flow_mbit=options.flow,
            loss=options.loss, jitter_ms=options.jitter, queue_ms=options.queue,
            mtu=options.mtu, seed=options.seed, congestion=options.congestion,
        ) as net:  # fmt: skip
            if options.what == "shell":
                return net.run(options.host, [os.environ.get("SHELL", "/bin/sh")]).wait()
            if options.what == "bench":
                return bench.bench(net, options.of, mib=options.mib, repeats=options.repeats)
            return probe(net, ring=options.ring, seconds=options.seconds)
    except (WanUnavailable, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
