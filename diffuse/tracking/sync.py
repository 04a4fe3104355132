"""`diffuse sync`: delivers the runs in the journal whose store was unavailable, or whose process was killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from diffuse.config.tracking_settings import TrackingSettings, tracking_settings
from diffuse.errors import ConfigError, RunError
from diffuse.schema import TrackingConfig
from diffuse.tracking import journal
from diffuse.tracking.address import address_error
from diffuse.tracking.delivery import Deliverer, deliver_orphan
from diffuse.tracking.mlflow_store import UnusableExperiment
from diffuse.tracking.store import Store

_WAIT_SECONDS = 60.0  # for another process that delivers the same


def sync(cfg: TrackingConfig, say: Callable[[str], None]) -> None:
    """Delivers what waits in the journal of `cfg`, each run to its own store, and reports it, a line a call of `say`.

    Runs of a process that is still at work are left to it. Other processes may deliver at the same time. An experiment
    that `cfg` names takes the runs whose own takes none; a run whose name its store refuses gets that of `cfg`; the
    store of its `tracking.uri` takes the runs whose own cannot be used.

    Raises:
        ConfigError: nothing is tracked, or a `tracking.uri` that can hold no runs.
        RunError: a store cannot be reached, or does not take a run, which waits on.
    """
    if cfg.name == "none":
        raise ConfigError("tracking=none keeps no runs to deliver; use tracking=mlflow")
    configured = Store.from_config(cfg)
    settings = tracking_settings(cfg)
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
        count_left += _deliver(spool, configured, settings, deliverers, unavailable, say)
    if count_left:
        waits = "waits" if count_left == 1 else "wait"
        gone = "; for a store that is gone, tracking.uri=URI names another" if unavailable - {configured.uri} else ""
        raise RunError(f"{_runs(count_left)} could not be delivered, and {waits} on in {configured.journal}{gone}")


def _deliver(
    spool: Path,
    configured: Store,
    settings: TrackingSettings,
    deliverers: dict[str, Deliverer],
    unavailable: set[str],
    say: Callable[[str], None],
) -> int:
    """Delivers a spool, and returns the number of runs that are left in it."""
    claim = journal.claim(spool, wait=_WAIT_SECONDS)
    if claim is None:  # the other process has delivered it; or it takes long, and the runs are there still
        if count := len(journal.run_files(spool)):
            say(f"{_runs(count)} left to another process, which delivers them; if there is none, make {spool} writable")
        return count
    store: Store | None = None
    try:
        store = journal.destination(spool, configured)
        wrong = address_error(store.uri) if store is not None and store.file is None else None
        if store is not None and wrong is not None:
            raise ValueError(f"{store.public_uri} {wrong}")
    except (OSError, ValueError) as error:
        if "uri" not in settings.origins:
            say(f"warning: {spool} does not say what store its runs are for ({error}): say tracking.uri= for them")
            claim.release(remove=True)
            return len(journal.run_files(spool))
        store = configured
    if store is None:
        say(f"warning: the runs in {spool} are for a store with a password: say tracking.uri= with it")
    else:
        # Only an address of diffuse's own: MLflow's variable may be there for other programs.
        takes_others = settings.origins.get("uri") == "tracking.uri" and configured.uri != store.uri
        if takes_others:
            store = replace(store, uri_origin="the runs' own address")
        _send(claim, store, configured, settings.run_name, deliverers, unavailable, say)
        if takes_others and store.uri in unavailable and (count := len(journal.run_files(spool))):
            say(f"{store.public_uri} cannot be used: {_runs(count)} for it to {configured.public_uri}")
            named = configured.is_experiment_given or store.experiment is None
            other = configured if named else replace(configured, experiment=store.experiment, experiment_id=None)
            _send(claim, other, configured, settings.run_name, deliverers, unavailable, say)
    claim.release(remove=True)
    return len(journal.run_files(spool))


def _send(
    claim: journal.Claim,
    store: Store,
    configured: Store,
    run_name: str | None,
    deliverers: dict[str, Deliverer],
    unavailable: set[str],
    say: Callable[[str], None],
) -> None:
    """Delivers a claimed spool to a store, unless that has turned out to be unavailable."""
    if store.uri in unavailable:
        return
    deliverer = deliverers.setdefault(store.uri, Deliverer(store, lambda name, run_id: None))
    substitute = configured if configured.is_experiment_given else None
    if substitute is not None and substitute.experiment_id is not None and substitute.uri != store.uri:
        substitute = None  # another store's number
    try:
        delivered = deliver_orphan(claim, deliverer, store, substitute, run_name)
    except UnusableExperiment as error:  # which says nothing of the store's other runs
        runs = _runs(len(journal.run_files(claim.spool)))
        deliverer.warn(f"{runs} in {claim.spool.name} cannot be delivered: ", error)
        delivered = []
    except Exception as error:
        unavailable.add(store.uri)
        deliverer.warn("", error)
        delivered = []
    for line in deliverer.take_warnings():
        say(f"warning: {line}")
    if delivered:
        killed = sum(run.killed for run in delivered)
        note = f", {killed} of them killed in the middle" if killed else ""
        say(f"{_runs(len(delivered))} delivered to {store.public_uri}{note}")


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
