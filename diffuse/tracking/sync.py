"""`diffuse sync`: delivers the runs in the journal whose store was unavailable, or whose process was killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffuse.errors import ConfigError, RunError
from diffuse.schema import TrackingConfig
from diffuse.tracking import journal
from diffuse.tracking.delivery import Deliverer, deliver_orphan
from diffuse.tracking.store import Store

_WAIT_SECONDS = 60.0  # for another process that delivers the same


def sync(cfg: TrackingConfig, say: Callable[[str], None]) -> None:
    """Delivers what waits in the journal of `cfg`, each run to its own store, and reports it, a line a call of `say`.

    Runs of a process that is still at work are left to it. Other processes may deliver at the same time.

    Raises:
        ConfigError: nothing is tracked, or a `tracking.uri` that can hold no runs.
        RunError: a store cannot be reached, or does not take a run, which waits on.
    """
    if cfg.name == "none":
        raise ConfigError("tracking=none keeps no runs to deliver; use tracking=mlflow")
    configured = Store.from_config(cfg)
    spools = journal.spools(configured.journal)
    if not spools:
        say(f"nothing waits in {configured.journal}")
    deliverers: dict[str, Deliverer] = {}
    unavailable: set[str] = set()
    count_left = 0
    for spool in spools:
        if journal.is_written(spool):
            if count := len(journal.run_files(spool)):
                say(f"{_runs(count)} of a process that is still at work: left to it")
            continue
        count_left += _deliver(spool, configured, deliverers, unavailable, say)
    if count_left:
        waits = "waits" if count_left == 1 else "wait"
        raise RunError(f"{_runs(count_left)} could not be delivered, and {waits} on in {configured.journal}")


def _deliver(
    spool: Path, configured: Store, deliverers: dict[str, Deliverer], unavailable: set[str], say: Callable[[str], None]
) -> int:
    """Delivers a spool, and returns the number of runs that are left in it."""
    claim = journal.claim(spool, wait=_WAIT_SECONDS)
    if claim is None:  # the other process has delivered it; or it takes long, and the runs are there still
        return len(journal.run_files(spool))
    try:
        store = journal.destination(spool, configured)
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"warning: {spool} does not say what store its runs are for: {error}")
        claim.release(remove=True)
        return len(journal.run_files(spool))
    if store is None:
        say(f"warning: the runs in {spool} are for a store with a password: say tracking.uri= with it")
    elif store.uri not in unavailable:
        deliverer = deliverers.setdefault(store.uri, Deliverer(store, lambda name, run_id: None))
        earlier = set(deliverer.warnings)
        try:
            delivered = deliver_orphan(claim, deliverer, store)
        except Exception as error:
            unavailable.add(store.uri)
            deliverer.warn("", error)
            delivered = []
        for reason in [reason for reason in deliverer.warnings if reason not in earlier]:
            say(f"warning: {deliverer.warnings[reason]}")
        if delivered:
            killed = sum(run.killed for run in delivered)
            note = f", {killed} of them killed in the middle" if killed else ""
            say(f"{_runs(len(delivered))} delivered to {store.public_uri}{note}")
    claim.release(remove=True)
    return len(journal.run_files(spool))


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
