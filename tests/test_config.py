"""Options: what is accepted, what wins, what is refused in which words, and that written settings come back equal."""
from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from utils import config
from utils.config import BY_NAME, OBSOLETE, Settings, parse
from utils.errors import UserError

# What users of the published program have: every key of its args.txt, with its quotes, its Yes and its fraction.
PUBLISHED = """
[Arguments]

log_type = progressbar
save_results = Yes
result_path = "./my results"
port = 8098
env = 3dfacefill
same_env = Yes

# data
dataroot = /data/CelebA/celebahq_crop/
dataset_train = Faces
dataset_test = Faces
train_dev_percent = 0.80
batch_size = 28

# model
model_type = 3dmm_pca
loss_type = _3DMM
resolution = [224, 224]
output_resolution = [224, 224]
texture_size = [192, 256]
nchannels = 3
ndf = 32
ndfc = 512
ngf = 32
ngfc = 512
ndim = 50
n_groupnorm = 4
n_disc_layers = 5
mdim = 6
ildim = 27
vertex_num = 53215
landmark_num = 68
tri_num = 105840
const_pixels_num = 20

# training
optim_method = Adam
learning_rate = 0.0001
optim_options = {"weight_decay": 4e-5, "betas": [0.5, 0.999]}
scheduler_method = ExponentialLR
scheduler_options = {"gamma": 0.98}
tex_loss = l1
recon_loss = l1
is_using_symmetry = True
is_using_recon = True
is_using_frecon = False
manual_seed = 0
nepochs = 500
ngpu = 2
nthreads = 20

_3dmm_ckpt = checkpoints/_3dmm_34.pth
occ_ckpt = checkpoints/occ_ckpt.pth
"""
FURTHER = ["--resume r.pth", "--recon-ckpt g.pth", "--niters 3", "--update-lr", "--test", "--dist", "--image i.jpg",
           "--mask m.png", "--output o", "--use-conf", "--save-dir s", "--logs-dir l", "--test-dev-percent 0.5",
           '--loss-options {"gan":0.1}', '--dataset-options {"seed":1}', "--stage encoder", "--eval"]


def read(*argv: str) -> Settings:
    return parse(list(argv), "test")


@pytest.fixture
def ini(tmp_path):
    """Writes an INI file with the given lines in its section and returns its path as a string."""
    def write(*lines: str) -> str:
        path = tmp_path / "my_args.txt"
        path.write_text("\n".join(["[Arguments]", *lines]))
        return str(path)
    return write


# ---- what is accepted ------------------------------------------------------------------------------------------

def test_published_file_loads_with_one_warning_per_option_without_meaning(tmp_path, capsys):
    path = tmp_path / "args.txt"
    path.write_text(PUBLISHED)
    settings = read("--config", str(path))
    warnings = capsys.readouterr().err.splitlines()
    keys = [line.split(" = ")[0] for line in PUBLISHED.splitlines() if " = " in line]
    ignored = [key for key in keys if key in OBSOLETE]
    assert len(warnings) == len(ignored) > 15
    for key, warning in zip(ignored, warnings):
        assert f"key {key} no longer means anything" in warning and str(path) in warning
    assert settings.result_path == "./my results" and settings.save_results is True
    assert settings.resolution == [224, 224] and settings.train_dev_percent == 0.8
    assert settings.optim_options == {"weight_decay": 4e-5, "betas": [0.5, 0.999]}
    assert settings._3dmm_ckpt == "checkpoints/_3dmm_34.pth" and settings.dataset_train == "Faces"
    assert not any(hasattr(settings, key) for key in ignored)


@pytest.mark.parametrize("option", FURTHER)
def test_further_options_are_known(option, capsys):
    flag, *value = option.split(" ")
    read(flag, *value)
    name = config.canonical(flag[2:])
    assert len(capsys.readouterr().err.splitlines()) == (name in OBSOLETE)


@pytest.mark.parametrize("name", ["args.txt", "args_celeba.txt"])
def test_shipped_files_load_without_a_word(name, pytestconfig, capsys):
    read("--config", str(pytestconfig.rootpath / name))
    assert capsys.readouterr().err == ""


def test_celeba_recipe_is_the_papers(pytestconfig):
    recipe = read("--config", str(pytestconfig.rootpath / "args_celeba.txt"))
    assert (recipe.optim_method, recipe.learning_rate, recipe.batch_size, recipe.nepochs) == ("Adam", 1e-4, 28, 500)
    assert recipe.optim_options == {"betas": [0.5, 0.999], "weight_decay": 4e-5}
    assert (recipe.scheduler_method, recipe.scheduler_options) == ("ExponentialLR", {"gamma": 0.98})
    assert (recipe.dataset_train, recipe.train_dev_percent, recipe.resolution) == ("CelebA", 80, [224, 224])
    assert recipe.loss_options == {"gan_start": 0, "hole_weight": 0, "rectangles": 1, "covered_occluders": 0,
                                   "augmentation": 0}


def test_command_line_wins_over_file_and_file_over_defaults(ini):
    path = ini("batch_size = 5", "niters = 7")
    settings = read("--config", path, "--batch-size", "6")
    assert (settings.batch_size, settings.niters) == (6, 7)
    assert settings.nepochs == BY_NAME["nepochs"].default


@pytest.mark.parametrize("argv", [
    ["--_3dmm-ckpt", "x.pth"], ["--_3dmm_ckpt", "x.pth"], ["--_3dmm_ckpt=x.pth"], ["--3dmm-ckpt", "x.pth"],
])
def test_hyphens_and_underscores_mean_the_same(argv):
    assert read(*argv)._3dmm_ckpt == "x.pth"


def test_keys_of_the_file_may_have_hyphens(ini):
    assert read("--config", ini("batch-size = 3", "_3dmm-ckpt = y.pth"))._3dmm_ckpt == "y.pth"


@pytest.mark.parametrize("argv", [["[256,256]"], ["[256,", "256]"], ["[256, 256]"], ["256x256"]])
def test_resolution_is_read_in_any_spelling(argv):
    assert read("--resolution", *argv).resolution == [256, 256]


def test_words_are_joined_only_where_a_list_may_stand():
    settings = read("--image", "a[1.jpg", "--mask", "m.png", "--optim-options", '{"betas": [0.5,', "0.9]}",
                    "--landmarks", "[1,", "2,", "9,", "8]")
    assert settings.image == "a[1.jpg" and settings.mask == "m.png" and settings.landmarks == "[1,2,9,8]"
    assert settings.optim_options == {"betas": [0.5, 0.9]}
    with pytest.raises(UserError, match=r"a\[1.txt: no such file"):
        read("--config", "a[1.txt", "--eval")


@pytest.mark.parametrize("argv, expected", [
    (["--eval"], True), (["--eval", "True"], True), (["--eval=false"], False), (["--eval", "no"], False),
    (["--test"], True), ([], False), (["--eval", "--ngpu", "1"], True),
])
def test_booleans_are_flags_or_values(argv, expected):
    assert read(*argv).eval is expected


def test_a_value_may_begin_with_a_minus():
    """As the landmarks of a face that leaves the photo do."""
    assert read("--landmarks", "-20,30,180,240", "--eval").landmarks == "-20,30,180,240"
    assert read("--landmarks", "-.5,30,180,240").landmarks == "-.5,30,180,240"


def test_other_names_of_an_option():
    assert read("--seed", "5").manual_seed == 5 and read("--num-workers", "3").nthreads == 3


def test_empty_value_means_default_and_none_means_not_set(ini):
    settings = read("--config", ini("batch_size =", "dataroot = None", "recon_ckpt = None"))
    assert settings.batch_size == BY_NAME["batch_size"].default
    assert settings.dataroot is None and settings.recon_ckpt is None


def test_json_may_run_over_several_lines(ini):
    assert read("--config", ini('optim_options = {"betas":', "    [0.5, 0.9]}")).optim_options == {"betas": [0.5, 0.9]}


def test_file_of_another_editor_loads(tmp_path):
    path = tmp_path / "args.txt"
    path.write_bytes("\ufeff[Arguments]\r\nbatch_size = 3\r\ndataroot = Fotos/Käthe\r\n".encode())
    settings = read("--config", str(path))
    assert settings.batch_size == 3 and settings.dataroot == "Fotos/Käthe"


def test_two_settings_share_no_value():
    first = read()
    first.resolution.append(1)
    first.loss_options["gan"] = 1
    assert read().resolution == [256, 256] and read().loss_options == {}


# ---- what is refused -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv, fragments", [
    (["--resolutoin", "[256,256]"], ["--resolutoin", "--resolution"]),
    (["--recon_kpt", "x"], ["--recon_kpt", "--recon-ckpt"]),
    (["--qqqqqq"], ["unknown option --qqqqqq; did you mean --"]),
    (["--resolution", "[300,300]"], ["--resolution", "[300,300]", "[256,256]", "[224,224]"]),
    (["--resolution", "[256]"], ["--resolution"]),
    (["--resolution", "[256,224]"], ["--resolution"]),
    (["--resolution", "big"], ["--resolution", "big"]),
    (["--optim-options", '{"betas": [0.5'], ["--optim-options", "malformed JSON"]),
    (["--optim-options", "[1, 2]"], ["--optim-options", "JSON object"]),
    (["--batch-size", "many"], ["--batch-size", "many", "whole number"]),
    (["--batch-size", "2.5"], ["--batch-size", "whole number"]),
    (["--batch-size", "0"], ["--batch-size", "too small"]),
    (["--learning-rate", "nan"], ["--learning-rate", "finite"]),
    (["--learning-rate", "-1"], ["--learning-rate", "too small"]),
    (["--learning-rate", "0"], ["--learning-rate", "too small"]),
    (["--portrait-share", "1"], ["--portrait-share", "too large"]),
    (["--seed", "18446744073709551616"], ["--manual-seed", "too large"]),
    (["--train-dev-percent", "120"], ["--train-dev-percent", "too large"]),
    (["--eval", "maybe"], ["--eval", "maybe"]),
    (["--dataset-test", "CelebB"], ["--dataset-test", "CelebA"]),
    (["--stage", "painter"], ["--stage", "inpainter"]),
    (["--batch-size"], ["--batch-size"]),
    (["photo.jpg"], ["photo.jpg"]),
    (["--config", "missing.txt"], ["missing.txt", "no such file"]),
])
def test_bad_command_line_is_one_clear_line(argv, fragments):
    with pytest.raises(UserError) as caught:
        read(*argv)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("line, fragments", [
    ("batch_sise = 3", ["batch_sise", "batch_size"]),
    ("qqqqqq = 3", ["unknown key qqqqqq; did you mean "]),
    ("batch_size = three", ["key batch_size", "three"]),
    ("resolution = [224, 225]", ["key resolution", "[224, 225]"]),
    ("scheduler_options = {gamma: 0.9}", ["key scheduler_options", "malformed JSON"]),
    ("is_using_symmetry = perhaps", ["key is_using_symmetry", "perhaps"]),
    ("batch_size = 3\nbatch_size = 4", ["batch_size", "twice"]),
    ("batch_size = 3\nbatch-size = 4", ["batch_size", "batch-size", "mean the same"]),
    ("dataroot = a\n  batch_size = 4", ["key dataroot", "several lines"]),
    ("[Others]\nx = 1", ["[Others]"]),
])
def test_bad_file_is_one_clear_line_with_file_and_key(ini, line, fragments):
    path = ini(line)
    with pytest.raises(UserError) as caught:
        read("--config", path)
    message = str(caught.value)
    assert message.startswith(path) and "\n" not in message
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("content", [
    b"", b"batch_size = 3\n", b"\xff\xfe\x00\x01", b"[Arguments\nx", b"\x89PNG\r\n\x1a\n",
])
def test_file_that_is_no_settings_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "args.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read("--config", str(path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_folder_in_place_of_a_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        read("--config", str(tmp_path))


# ---- the way back ----------------------------------------------------------------------------------------------

def values_of(option: config.Option) -> st.SearchStrategy:
    """Any value that the option can have."""
    if option.kind == "bool":
        return st.booleans()
    if option.kind == "size":
        return st.sampled_from([[224, 224], [256, 256]])
    if option.kind == "json":
        numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        scalars = st.none() | st.booleans() | numbers | st.text()
        return st.dictionaries(st.text(), st.recursive(scalars, st.lists, max_leaves=4), max_size=3)
    if option.choices:
        return st.sampled_from(option.choices)
    if option.kind in ("int", "float"):
        least, most = option.least or 0, option.most or 10**6
        return st.integers(int(least), int(most)) if option.kind == "int" else st.floats(least, most, allow_nan=False)
    alphabet = st.characters(codec="utf-8", exclude_characters="\r\n\0", exclude_categories=["Cs", "Cc", "Zl", "Zp"])
    tricky = ["", " a ", "'quoted'", '"', "none", "# no comment", "; x", "a = b", "[x]", "%(x)s", "a: b"]
    typed = st.text(string.ascii_letters + string.digits + string.punctuation + " \t")
    texts = st.text(alphabet) | typed | st.sampled_from(tricky)
    return texts if option.kind == "text" else st.none() | texts


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(BY_NAME.values())).flatmap(
    lambda option: st.tuples(st.just(option.name), values_of(option))))
def test_written_settings_come_back_equal(tmp_path_factory, change):
    path = tmp_path_factory.getbasetemp() / "settings.txt"
    settings = config.defaults().replace(**dict([change]))
    settings.write(path)
    assert Settings(**{**vars(config.defaults()), **config.read_ini(path)}) == settings


def test_written_settings_load_without_warnings_and_leave_no_other_file(tmp_path, capsys):
    read("--niters", "4", "--port", "1").write(tmp_path / "new" / "settings.txt")
    capsys.readouterr()
    assert read("--config", str(tmp_path / "new" / "settings.txt")).niters == 4
    assert capsys.readouterr().err == ""
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["settings.txt"]


def test_value_that_no_file_can_hold_is_refused(tmp_path):
    with pytest.raises(UserError, match="line breaks"):
        config.defaults().replace(dataroot="a\nb").write(tmp_path / "settings.txt")
    assert list(tmp_path.iterdir()) == []


def test_replace_copies_and_knows_its_names():
    settings = config.defaults()
    assert settings.replace(niters=5).niters == 5 and settings.niters == BY_NAME["niters"].default
    with pytest.raises(KeyError):
        settings.replace(iterations=5)
