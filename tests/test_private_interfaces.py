"""The private interfaces of libraries that the code uses: each does what is needed, and there are no others."""

from __future__ import annotations

import ast
import copy
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.plugins.launcher import Launcher
from hydra.version import VersionBase
from omegaconf import OmegaConf
from packaging.version import parse as parse_version
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import diffuse
from diffuse.tracking.upgrade import known_revisions

PACKAGE = Path(diffuse.__file__).parent
PAGE = PACKAGE / "docs" / "private-interfaces.md"
# Documented, for all their underscores: of named tuples, of Hydra's configurations, of os; and a type of typeshed's.
PUBLIC = {"_asdict", "_fields", "_replace", "_target_", "_exit", "_Hash"}
PRIVATE = re.compile(r"_[a-zA-Z]\w*")
MKLDNN = "torch.ops.mkldnn"


def listed() -> list[str]:
    """Returns the interfaces of the page's table."""
    return re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


class Probe(Launcher):
    """A launcher that does nothing."""

    def setup(self, **arguments: Any) -> None:
        pass

    def launch(self, *arguments: Any) -> Any:
        return []


def plugins_by_name() -> None:
    """Hydra makes the class that the table has for a name, which has to begin with `hydra_plugins`."""

    def launcher(target: str) -> Any:
        config = OmegaConf.create({"hydra": {"launcher": {"_target_": target}}})
        return Plugins.instance().instantiate_launcher(hydra_context=None, task_function=None, config=config)

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(Plugins.instance().class_name_to_class, "hydra_plugins.tests.Probe", Probe)
        assert isinstance(launcher("hydra_plugins.tests.Probe"), Probe)
        patched.setitem(Plugins.instance().class_name_to_class, "diffuse.Probe", Probe)
        with pytest.raises(RuntimeError, match="not the hydra_plugins package"):
            launcher("diffuse.Probe")  # otherwise the name could be the class's own, and `register` would do


def stored_configurations() -> None:
    store = ConfigStore.instance()
    store.store(group="hydra/probe", name="one", node={"a": 1})
    assert store.repo["hydra"]["probe"].pop("one.yaml").node == {"a": 1}
    assert store.list("hydra/probe") == []
    del store.repo["hydra"]["probe"]


def optuna_sweeper() -> None:
    optuna = pytest.importorskip("optuna")
    sweeper = pytest.importorskip("hydra_plugins.hydra_optuna_sweeper.optuna_sweeper").OptunaSweeper
    needed = {"sampler", "direction", "storage", "study_name", "n_trials", "n_jobs", "max_failure_rate"}
    assert {*inspect.signature(sweeper).parameters} == needed | {"search_space", "custom_search_space", "params"}
    with pytest.raises(ValueError, match="No trials are completed"):
        optuna.create_study().best_trial  # noqa: B018


def loky_executor() -> None:
    loky = pytest.importorskip("joblib.externals.loky")
    assert {"max_workers", "env", "initializer"} <= {*inspect.signature(loky.ProcessPoolExecutor).parameters}
    assert {"wait", "kill_workers"} <= {*inspect.signature(loky.ProcessPoolExecutor.shutdown).parameters}


def loky_memory_limit() -> None:
    """See also the test of a worker that grows, in tests/sweep."""
    executor = pytest.importorskip("joblib.externals.loky.process_executor")
    assert isinstance(executor._MAX_MEMORY_LEAK_SIZE, int)
    assert "< _MAX_MEMORY_LEAK_SIZE" in inspect.getsource(executor._process_worker)


def mlflow_pages() -> None:
    from mlflow.server import app as pages
    from mlflow.server.fastapi_app import app

    for method in ("add_url_rule", "after_request"):  # of Flask's
        assert callable(getattr(pages, method))
    assert pages in [getattr(getattr(route, "app", None), "app", None) for route in app.routes]


def mlflow_artifacts() -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("old.txt", "new.txt"):
            (folder / file).write_text(file)
        get_artifact_repository(folder.as_uri(), tracking_uri=None).delete_artifacts("old.txt")
        assert [path.name for path in folder.iterdir()] == ["new.txt"]


def mlflow_schemas() -> None:
    """The names that are read from the files are those that alembic reads."""
    import mlflow
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    script = {each.revision: each.down_revision for each in ScriptDirectory.from_config(config).walk_revisions()}
    assert known_revisions() == {name: (before,) if before else () for name, before in script.items()}
    assert len(script) > 60


def compiler_errors() -> None:
    from torch._dynamo import exc
    from torch._inductor.exc import InductorError

    assert issubclass(exc.TorchDynamoException, RuntimeError)
    for error in (exc.BackendCompilerFailed, exc.Unsupported, exc.InternalTorchDynamoError, InductorError):
        assert issubclass(error, exc.TorchDynamoException)


def function_mode() -> None:
    """A mode sees the functions of `torch.nn.init`, by which modules fill their weights."""
    seen = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(getattr(func, "__module__", None))
            return func(*args, **(kwargs or {}))

    with Recorder():
        nn.Linear(2, 2)
    assert "torch.nn.init" in seen


def dispatch_mode() -> None:
    """A mode sees every operator, also where its method is set late, and composite ones in inference mode."""
    seen: list[str] = []

    class Recorder(TorchDispatchMode):
        def see(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
            seen.append(func.overloadpacket._qualified_op_name)
            if func is torch.ops.aten._local_scalar_dense.default:
                return 7
            return torch.zeros(2) if func is torch.ops.aten._to_copy.default else func(*args, **(kwargs or {}))

    Recorder.__torch_dispatch__ = Recorder.see  # type: ignore[method-assign]
    with torch.inference_mode(), Recorder():
        x = torch.empty(2, device="meta")
        assert x.cpu().device.type == "cpu" and x[0].item() == 7
        nn.functional.linear(x, torch.empty(3, 2, device="meta"))
    assert {"aten::_to_copy", "aten::_local_scalar_dense"} <= {*seen} and "aten::linear" not in seen


def moving_modules() -> None:
    seen: list[bool] = []

    class Watched(nn.Linear):
        def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
            seen.append(recurse)
            return super()._apply(fn, recurse)

    nn.Sequential(Watched(1, 1)).to(torch.float64).half()
    assert seen == [True, True]


def saving_modules() -> None:
    class Doubled(nn.Linear):
        def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[f"{prefix}weight"] = 2 * self.weight.detach()

    model = nn.Sequential(Doubled(1, 1))
    assert torch.equal(model.state_dict()["0.weight"], 2 * model[0].weight)  # type: ignore[operator]


def onednn() -> None:
    """Packed weights give what plain ones give; see also the tests of the layers."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch is built without oneDNN")
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
    x, weight, bias = torch.randn(3, 8), torch.randn(4, 8), torch.randn(4)
    with torch.inference_mode():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        ours = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        assert packed.is_mkldnn and torch.allclose(ours, nn.functional.linear(x, weight, bias), atol=1e-5)
        x, weight = torch.randn(1, 2, 8, 8), torch.randn(4, 2, 3, 3)
        geometry = ([1, 1], [1, 1], [1, 1], 1)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, x.shape)
        ours = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *geometry, "none", [], "")
        assert packed.is_mkldnn and torch.allclose(ours, nn.functional.conv2d(x, weight, bias, padding=1), atol=1e-5)


def parsed_overrides() -> None:
    one, two = OverridesParser.create().parse_overrides(["a=1", "b=2,3"])
    assert not one.is_sweep_override() and two.is_sweep_override()
    assert (one.key_or_group, one.value(), one.input_line) == ("a", 1, "a=1")


def states_of_hydra() -> None:
    """What is set is what is found, and comes back when it is set again."""
    outer, job, version = GlobalHydra.instance(), JobRuntime.instance(), VersionBase.instance()
    values, base = copy.deepcopy(job.conf), version.getbase()
    inner = copy.copy(outer)
    try:
        GlobalHydra.set_instance(inner)
        job.set("name", "probe")
        version.version_base = parse_version("1.2")
        assert GlobalHydra.instance() is inner
        assert JobRuntime.instance().get("name") == "probe" and str(VersionBase.instance().getbase()) == "1.2"
    finally:
        GlobalHydra.set_instance(outer)
        job.conf = values
        version.version_base = base
    assert GlobalHydra.instance() is outer and version.getbase() == base


def hub_errors() -> None:
    """It is what a connection that fails raises, and no error of files."""
    from huggingface_hub import errors, get_session

    with pytest.raises(errors.HTTPError):
        get_session().get("http://127.0.0.1:1")
    assert not issubclass(errors.HTTPError, OSError) or issubclass(errors.HfHubHTTPError, errors.HTTPError)


def counted_operators() -> None:
    assert flop_registry[torch.ops.aten.mm](torch.empty(2, 3), torch.empty(3, 4), out_val=torch.empty(2, 4)) == 48


PROBES: dict[str, Callable[[], None]] = {
    "hydra.core.plugins.Plugins.class_name_to_class": plugins_by_name,
    "hydra.core.config_store.ConfigStore.repo": stored_configurations,
    "hydra.core.override_parser.overrides_parser.OverridesParser": parsed_overrides,
    "hydra.core.global_hydra.GlobalHydra.set_instance": states_of_hydra,
    "hydra.core.utils.JobRuntime.conf": states_of_hydra,
    "hydra.version.VersionBase.version_base": states_of_hydra,
    "huggingface_hub.errors.HTTPError": hub_errors,
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper": optuna_sweeper,
    "joblib.externals.loky.ProcessPoolExecutor": loky_executor,
    "joblib.externals.loky.process_executor._MAX_MEMORY_LEAK_SIZE": loky_memory_limit,
    "mlflow.server.app": mlflow_pages,
    "mlflow.server.fastapi_app.app": mlflow_pages,
    "mlflow.store.db_migrations.versions": mlflow_schemas,
    "mlflow.store.artifact.artifact_repository_registry.get_artifact_repository": mlflow_artifacts,
    "torch._dynamo.exc.TorchDynamoException": compiler_errors,
    "torch.overrides.TorchFunctionMode": function_mode,
    "torch.utils._python_dispatch.TorchDispatchMode": dispatch_mode,
    "torch.utils.flop_counter.flop_registry": counted_operators,
    "torch.OpOverload.decompose": dispatch_mode,
    "torch.ops.aten._to_copy": dispatch_mode,
    "torch.ops.aten._local_scalar_dense": dispatch_mode,
    "torch.nn.Module._apply": moving_modules,
    "torch.nn.Module._save_to_state_dict": saving_modules,
    f"{MKLDNN}._is_mkldnn_bf16_supported": onednn,
    f"{MKLDNN}._reorder_linear_weight": onednn,
    f"{MKLDNN}._linear_pointwise": onednn,
    f"{MKLDNN}._reorder_convolution_weight": onednn,
    f"{MKLDNN}._convolution_pointwise": onednn,
}


@pytest.mark.parametrize("interface", PROBES)
def test_it_does_what_is_needed(interface: str) -> None:
    PROBES[interface]()


def test_each_is_on_the_page() -> None:
    assert sorted(PROBES) == sorted(listed())


def own_names(tree: ast.Module) -> set[str]:
    """Returns the names with an underscore that a module defines: functions, classes, attributes of `self`."""
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    attributes = (
        node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
    )
    return defined | {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}


def private_names(tree: ast.Module) -> set[str]:
    """Returns the names with an underscore that a module uses of others: attributes, imports, and modules as texts."""
    used, own = set[str](), own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
            owner = ast.unparse(node.value)
            if owner == "super()" or (owner not in ("self", "cls") and node.attr not in own | PUBLIC):
                used.add(f"{owner}.{node.attr}")
        elif isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names if "._" in alias.name}
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            used |= {name for name in (f"{node.module}.{alias.name}" for alias in node.names) if "._" in name}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used |= {node.value} if re.fullmatch(r"[a-z]+\._[a-z][\w.]*", node.value) else set()
    return used


# What pickles of weights say of their tensors: texts that are compared, of which nothing is looked up or called.
IN_PICKLES = "torch._utils._rebuild_"


def test_there_are_no_others() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    used = {name: str(path.relative_to(PACKAGE)) for path, tree in trees.items() for name in private_names(tree)}
    used = {name: path for name, path in used.items() if not name.startswith(IN_PICKLES)}

    def is_use(name: str, interface: str) -> bool:
        same_end = name.rpartition(".")[2] == interface.rpartition(".")[2]
        return same_end or f".{name}." in f".{interface}."

    unlisted = {name: path for name, path in used.items() if not any(is_use(name, one) for one in listed())}
    assert not unlisted, "use a public interface, or add a line to diffuse/docs/private-interfaces.md"
    private = [interface for interface in listed() if "._" in interface]
    unused = [interface for interface in private if not any(is_use(name, interface) for name in used)]
    assert not unused, "the code does not use these any more: delete their lines and checks"
