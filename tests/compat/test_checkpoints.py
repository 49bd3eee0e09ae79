"""Reading files of others: what they hold comes back as plain values, and nothing in them is ever executed."""

import argparse
import builtins
import contextlib
import copy
import io
import json
import operator
import os
import pickle
import subprocess
import tarfile
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from subquad.compat.checkpoints import read_checkpoint
from subquad.data import DataError


def weights():
    return {"a.weight": torch.arange(300.0), "b.weight": torch.ones(2, 3, dtype=torch.float16)}


def save(path, content):
    torch.save(content, path)
    return path


def same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Replace the records of an archive."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


class TestWhatIsRead:
    def test_a_plain_state_dict(self, tmp_path):
        read = read_checkpoint(save(tmp_path / "model.pth", weights()))
        same(read.tensors, weights())
        assert (read.arguments, read.progress) == ({}, {})

    @pytest.mark.parametrize("arguments", ["args", "cfg"])
    def test_fairseq(self, tmp_path, arguments):
        namespace = argparse.Namespace(arch="tnn_v2_decay_99_pre", gamma=0.99, betas=(0.9, 0.98), none=None)
        said = {"args": namespace} if arguments == "args" else {"args": None, "cfg": {"model": namespace, "task": {}}}
        history = [{"num_updates": 10}, {"num_updates": 50000}]
        content = {**said, "model": weights(), "optimizer_history": history, "extra_state": {"val_loss": 4.125}}
        read = read_checkpoint(save(tmp_path / "checkpoint_best.pt", content))
        same(read.tensors, weights())
        assert read.arguments == {"arch": "tnn_v2_decay_99_pre", "gamma": 0.99, "betas": [0.9, 0.98], "none": None}
        assert read.progress == {"updates": 50000, "valid_loss": 4.125}

    def test_fairseq_with_plain_dictionaries_and_an_optimiser(self, tmp_path):
        state = {"state": {0: {"step": 3, "exp_avg": torch.zeros(300)}}, "param_groups": [{"lr": 1e-3}]}
        content = {"cfg": {"model": {"_name": "transformer_lm"}}, "model": weights(), "last_optimizer_state": state}
        read = read_checkpoint(save(tmp_path / "checkpoint_best.pt", content))
        same(read.tensors, weights())
        assert read.arguments == {"_name": "transformer_lm"}

    def test_lightning(self, tmp_path):
        content = {"state_dict": weights(), "hyper_parameters": {"model": {"d_model": 128}}, "global_step": 5000}
        read = read_checkpoint(save(tmp_path / "last.ckpt", content))
        same(read.tensors, weights())
        assert read.arguments == {"model": {"d_model": 128}}
        assert read.progress == {"updates": 5000}

    def test_the_long_range_arena_of_primal_attention(self, tmp_path):
        same(read_checkpoint(save(tmp_path / "m.model", {"model_state_dict": weights()})).tensors, weights())

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
    def test_wrappers_leave_the_names(self, tmp_path, prefix):
        wrapped = {prefix + name: tensor for name, tensor in weights().items()}
        same(read_checkpoint(save(tmp_path / "ddp.pt", wrapped)).tensors, weights())
        inside = {**wrapped, "head": torch.ones(1)}
        same(read_checkpoint(save(tmp_path / "inside.pt", inside)).tensors, inside)

    def test_parameters_and_tied_tensors(self, tmp_path):
        shared = torch.nn.Parameter(torch.ones(4, 4))
        read = read_checkpoint(save(tmp_path / "tied.pt", {"in": shared, "out": shared, "rows": shared[:2]}))
        same(read.tensors, {"in": shared.detach(), "out": shared.detach(), "rows": shared[:2].detach()})

    def test_safetensors(self, tmp_path):
        save_file(weights(), tmp_path / "model.safetensors")
        read = read_checkpoint(tmp_path / "model.safetensors")
        same(read.tensors, weights())
        assert read.sha256().keys() == {"model.safetensors"}

    @pytest.mark.parametrize("kind", ["one file", "shards", "pickle"])
    def test_a_folder_of_hugging_face(self, tmp_path, kind):
        (tmp_path / "config.json").write_text('{"hidden_size": 8}')
        if kind == "one file":
            save_file(weights(), tmp_path / "model.safetensors")
        elif kind == "pickle":
            save(tmp_path / "pytorch_model.bin", weights())
        else:
            shards = {name: f"model-{i}.safetensors" for i, name in enumerate(weights())}
            for name, file in shards.items():
                save_file({name: weights()[name]}, tmp_path / file)
            (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        read = read_checkpoint(tmp_path)
        same(read.tensors, weights())
        assert read.arguments == {"hidden_size": 8}
        assert len(read.sha256()) == (2 if kind == "shards" else 1)


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stateful:
    """An object whose pickle is a class of this module with a state."""

    def __setstate__(self, state):
        os.system(state["command"])


def attacks(marker):
    command = f"echo was here > {marker}"
    stateful = Stateful()
    stateful.command = command
    return {
        "os.system": Call(os.system, command),
        "subprocess": Call(subprocess.Popen, ["sh", "-c", command]),
        "eval": Call(builtins.eval, f"__import__('os').system({command!r})"),
        "getattr chain": Call(getattr, Call(__import__, "os"), "system"),
        "called getattr chain": Call(list, Call(map, Call(getattr, Call(__import__, "os"), "system"), [command])),
        "attrgetter": Call(operator.attrgetter("system"), Call(__import__, "os")),
        "state of a class": stateful,
        "torch.load": Call(torch.load, str(marker)),
        "pickle in a pickle": Call(pickle.loads, pickle.dumps(Call(os.system, command))),
    }


PLACES = {
    "fairseq": lambda evil: {"model": weights(), "args": evil},
    "namespace": lambda evil: {"model": weights(), "args": argparse.Namespace(arch="tnn", inner=evil)},
    "lightning": lambda evil: {"state_dict": weights(), "hyper_parameters": {"model": [evil]}},
    "weights": lambda evil: {"model": {**weights(), "evil": evil}},
    "alone": lambda evil: evil,
}


class TestHostilePickles:
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("attack", attacks("nowhere"))
    def test_nothing_is_executed(self, tmp_path, place, attack):
        marker = tmp_path / "marker"
        path = save(tmp_path / "checkpoint_best.pt", PLACES[place](attacks(marker)[attack]))
        with pytest.raises(DataError, match=r"checkpoint_best.pt: reading it would run code: .*Nothing was run"):
            read_checkpoint(path)
        assert not marker.exists()

    @pytest.mark.parametrize("attack", ["os.system", "called getattr chain"])
    def test_the_files_of_these_tests_are_hostile(self, tmp_path, attack):
        marker = tmp_path / "marker"
        torch.load(save(tmp_path / "x.pt", PLACES["namespace"](attacks(marker)[attack])), weights_only=False)
        assert marker.exists()

    def test_all_names_are_listed_with_a_way_out(self, tmp_path):
        evil = {"model": weights(), "args": [Call(os.system, "true"), Call(operator.attrgetter, "x")]}
        with pytest.raises(DataError, match=r"operator\.attrgetter, (posix|nt)\.system\. .* with safetensors"):
            read_checkpoint(save(tmp_path / "x.pt", evil))

    def test_the_configuration_objects_of_others_are_not_imported(self, tmp_path):
        path = rewrite(
            save(tmp_path / "last.ckpt", {"state_dict": weights(), "hyper_parameters": argparse.Namespace(a=1)}),
            lambda records: records.update(
                {
                    name: content.replace(b"cargparse\nNamespace", b"comegaconf.dictconfig\nDictConfig")
                    for name, content in records.items()
                    if name.endswith("data.pkl")
                }
            ),
        )
        with pytest.raises(DataError, match=r"would run code: omegaconf\.dictconfig\.DictConfig"):
            read_checkpoint(path)

    @pytest.mark.parametrize(
        "evil", [Call(bytearray, 1 << 40), Call(torch.Tensor, 1 << 40), Call(torch.UntypedStorage, 1 << 40)]
    )
    def test_nothing_is_allocated_by_number(self, tmp_path, evil):
        with pytest.raises(DataError, match="would run code"):
            read_checkpoint(save(tmp_path / "x.pt", {"model": weights(), "args": evil}))

    @pytest.mark.parametrize("protocol", range(6))
    def test_other_pickles_are_not_read(self, tmp_path, protocol):
        marker, path = tmp_path / "marker", tmp_path / "x.pt"
        path.write_bytes(pickle.dumps({"model": Call(os.system, f"touch {marker}")}, protocol=protocol))
        with pytest.raises(DataError, match="not a zip archive of torch"):
            read_checkpoint(path)
        torch.save({"model": Call(os.system, f"touch {marker}")}, path, pickle_protocol=max(protocol, 2))
        with pytest.raises(DataError, match=r"x\.pt"):
            read_checkpoint(path)
        assert not marker.exists()

    def test_old_formats_of_torch_are_not_read(self, tmp_path):
        torch.save(weights(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        with tarfile.open(tmp_path / "older.pt", "w") as archive:
            content = pickle.dumps(Call(os.system, f"touch {tmp_path / 'marker'}"))
            entry = tarfile.TarInfo("pickle")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name in ("old.pt", "older.pt"):
            with pytest.raises(DataError, match=r"Formats older than torch 1.6 are not read"):
                read_checkpoint(tmp_path / name)
        assert not (tmp_path / "marker").exists()

    def test_torchscript_is_not_read(self, tmp_path):
        path = save(tmp_path / "script.pt", weights())
        rewrite(path, lambda records: records.update({"script/code/__torch__.py": b"def forward(self): ..."}))
        with pytest.raises(DataError, match="TorchScript"):
            read_checkpoint(path)


class TestSizes:
    def test_compressed_archives(self, tmp_path):
        path = save(tmp_path / "bomb.pt", {"w": torch.zeros(1 << 20)})
        rewrite(path, lambda records: None, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 1 << 20
        with pytest.raises(DataError, match="a compressed archive"):
            read_checkpoint(path)

    def test_records_that_overlap(self, tmp_path):
        path = save(tmp_path / "bomb.pt", {"w": torch.zeros(1 << 10)})
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in records.items():
                archive.writestr(name, content)
            largest = max(archive.filelist, key=lambda entry: entry.file_size)
            for i in range(20):
                again = copy.copy(largest)
                again.filename = f"bomb/data/{i + 1}"
                archive.filelist.append(again)
        with pytest.raises(DataError, match="its records declare more than the"):
            read_checkpoint(path)

    @pytest.mark.parametrize("numel", [310, 0x7FFF])
    def test_storages_longer_than_their_records(self, tmp_path, numel):
        def grow(records):
            for name in records:
                if name.endswith("data.pkl"):
                    grown = records[name].replace(b"M,\x01", b"M" + numel.to_bytes(2, "little"))
                    assert grown != records[name]
                    records[name] = grown

        path = rewrite(save(tmp_path / "grown.pt", weights()), grow)
        with pytest.raises(DataError, match=r"declares more than the file holds|damaged"):
            read_checkpoint(path)

    @pytest.mark.parametrize(
        ("tensor", "message"),
        [
            (torch.ones(1).expand(1 << 40), "declares more than the file holds"),
            (torch.ones(4).as_strided((1 << 20,), (0,)), "declares more than the file holds"),
            (torch.eye(3).to_sparse(), "would run code|sparse"),
            (torch.empty(1 << 40, device="meta"), "would run code|without values"),
        ],
    )
    def test_tensors_larger_than_their_storage(self, tmp_path, tensor, message):
        with pytest.raises(DataError, match=message):
            read_checkpoint(save(tmp_path / "view.pt", {"w": tensor}))

    def test_many_names_for_one_tensor(self, tmp_path):
        tensor = torch.zeros(1 << 16)
        with pytest.raises(DataError, match="more than 4 times the file's"):
            read_checkpoint(save(tmp_path / "names.pt", {f"layers.{i}": tensor for i in range(200)}))

    def test_arguments_without_end(self, tmp_path):
        def billion_laughs():
            value = ["ha"] * 10
            for _ in range(12):
                value = [value] * 10
            return value

        with pytest.raises(DataError, match="more than 10,000 arguments"):
            read_checkpoint(save(tmp_path / "x.pt", {"model": weights(), "args": {"laughs": billion_laughs()}}))
        circle = []
        circle.append(circle)
        with pytest.raises(DataError, match=r"nested too deeply|more than 10,000"):
            read_checkpoint(save(tmp_path / "x.pt", {"model": weights(), "args": {"circle": circle}}))


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([torch.ones(1)], "holds a list, not a dictionary"),
            ({}, "holds no tensors by name"),
            ({"model": {}}, "holds no tensors by name"),
            ({"model": {"w": 3.0}}, "no dictionary of tensors .*looked for under model, state_dict"),
            ({"weights": weights()}, r"no dictionary of tensors \(it holds weights\)"),
            ({"model": {1: torch.ones(1)}}, "no dictionary of tensors"),
            ({"model": weights(), "args": {"x": torch.ones(1)}}, "an argument is a Tensor"),
        ],
    )
    def test_no_weights(self, tmp_path, content, message):
        with pytest.raises(DataError, match=message):
            read_checkpoint(save(tmp_path / "x.pt", content))

    def test_nothing_there(self, tmp_path):
        with pytest.raises(DataError, match="no such file or folder"):
            read_checkpoint(tmp_path / "x.pt")
        with pytest.raises(DataError, match=r"no model.safetensors and no pytorch_model.bin"):
            read_checkpoint(tmp_path)
        (tmp_path / "empty.pt").touch()
        with pytest.raises(DataError, match="not a zip archive of torch"):
            read_checkpoint(tmp_path / "empty.pt")
        (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
        with pytest.raises(DataError, match="corrupt or cut off"):
            read_checkpoint(tmp_path / "x.safetensors")

    @pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "missing.safetensors"])
    def test_an_index_that_leads_outside(self, tmp_path, shard):
        folder = tmp_path / "folder"
        folder.mkdir()
        save_file(weights(), tmp_path / "outside.safetensors")
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": shard}}))
        with pytest.raises(DataError, match=r"must name files of this folder|lacks missing.safetensors"):
            read_checkpoint(folder)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """A fairseq checkpoint as bytes, and where to write changed ones."""
    path = tmp_path_factory.mktemp("fuzz") / "checkpoint_best.pt"
    namespace = argparse.Namespace(arch="tnn_v2_decay_99_pre", gamma=0.99, betas="(0.9, 0.98)")
    save(path, {"args": None, "cfg": {"model": namespace}, "model": {"w": torch.arange(5.0)}})
    return path, path.read_bytes()


def read_or_refuse(path, content):
    """Any other error fails the test."""
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        read_checkpoint(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused(fuzzed, data):
    path, content = fuzzed
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(path, bytes(changed))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_pickles_are_read_or_refused(fuzzed, data):
    path, content = fuzzed
    path.write_bytes(content)

    def change(records):
        name = next(name for name in records if name.endswith("data.pkl"))
        changed = bytearray(records[name])
        for _ in range(data.draw(st.integers(1, 4))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        records[name] = bytes(changed)

    read_or_refuse(path, rewrite(path, change).read_bytes())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_files_that_are_cut_off_are_refused(fuzzed, share):
    path, content = fuzzed
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError):
        read_checkpoint(path)
