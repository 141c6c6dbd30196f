import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from keras_mas.serving.standin import rest_json
from keras_mas.serving.standin.protocol import RequestError


def infos(**dtypes):
    """TensorInfos by name, as a signature has them."""
    return {
        name: meta_graph_pb2.TensorInfo(dtype=tf.as_dtype(dtype).as_datatype_enum)
        for name, dtype in dtypes.items()
    }


def read(text, **dtypes):
    return rest_json.read_tensors(rest_json.parse_object(text.encode()), infos(**dtypes))


def refusal(text, **dtypes):
    with pytest.raises(RequestError) as caught:
        read(text, **dtypes)
    return caught.value.message


def test_row_and_column_format_are_equivalent():
    rows = read(
        '{"instances": [{"x": 1, "y": [2, 3]}, {"x": 4, "y": [5, 6]}]}', x="int32", y="float"
    )
    columns = read('{"inputs": {"x": [1, 4], "y": [[2, 3], [5, 6]]}}', x="int32", y="float")
    for tensors in (rows, columns):
        assert tensors["x"].tolist() == [1, 4] and tensors["x"].dtype == np.int32
        assert tensors["y"].tolist() == [[2, 3], [5, 6]] and tensors["y"].dtype == np.float32


@pytest.mark.parametrize(
    "text",
    ['{"instances": [1, 2]}', '{"instances": [{"x": 1}, {"x": 2}]}', '{"inputs": [1, 2]}'],
)
def test_the_only_input_needs_no_name(text):
    assert read(text, x="float")["x"].tolist() == [1.0, 2.0]


def test_a_column_may_have_any_shape():
    assert read('{"inputs": 3}', x="float")["x"].shape == ()
    assert read('{"inputs": [[], []]}', x="float")["x"].shape == (2, 0)


def test_bytes_are_base64_and_text_is_utf_8():
    tensors = read('{"instances": ["é", {"b64": "/w=="}]}', x="string")
    assert tensors["x"].tolist() == ["é".encode(), b"\xff"] and tensors["x"].dtype == object


def test_not_a_number_and_infinity_are_bare_words():
    x = read('{"inputs": [NaN, Infinity, -Infinity, 1e39]}', x="float")["x"]
    np.testing.assert_array_equal(x, np.array([np.nan, np.inf, -np.inf, np.inf], np.float32))


REFUSED_TYPES = [
    ('"one"', "float", 'JSON Value: "one" Type: String is not of expected type: float'),
    ("true", "float", "JSON Value: true Type: True is not of expected type: float"),
    ("null", "float", "JSON Value: null Type: Null is not of expected type: float"),
    (
        '{"b64": "AA=="}',
        "float",
        'JSON Value: {\n    "b64": "AA=="\n} Type: Object is not of expected type: float',
    ),
    ("1.5", "int64", "JSON Value: 1.5 Type: Number is not of expected type: int64"),
    ("1", "bool", "JSON Value: 1 Type: Number is not of expected type: bool"),
    ("1", "string", "JSON Value: 1 Type: Number is not of expected type: string"),
    ('{"b64": "?"}', "string", "Unable to base64 decode"),
    ('{"b64": "é"}', "string", "Unable to base64 decode"),
    ("2147483648", "uint8", "JSON Value: 2147483648 Type: Number is not of expected type: uint8"),
    ("-1", "uint32", "JSON Value: -1 Type: Number is not of expected type: uint32"),
    ("1", "half", "Conversion of JSON Value: 1 to type: half"),
]


@pytest.mark.parametrize(("value", "dtype", "message"), REFUSED_TYPES)
def test_values_of_another_type_are_refused(value, dtype, message):
    assert refusal(f'{{"inputs": [{value}]}}', x=dtype).startswith(message)


REFUSED_SHAPES = [
    ('{"inputs": [[1, 2], [3]]}', "list at unexpected size: 1 at level: 1 expected size: 2"),
    ('{"inputs": [[1, 2], 3]}', "Value: 3 found at incorrect level: 2 in the JSON DOM"),
    ('{"inputs": [1, [2]]}', "Encountered list at unexpected level: 1 expected < 1"),
    ('{"inputs": %s}' % ("[" * 65 + "]" * 65), "lists nested more than 64 deep"),
    # With the axis of the instances 64 lists make a tensor of rank 65.
    ('{"instances": [%s]}' % ("[" * 64 + "1" + "]" * 64), "lists nested more than 64 deep"),
    ('{"instances": [{"x": [1, 2]}, {"x": [3]}]}', "element: 1 key: x of 'instances' list. "),
    ('{"instances": [[1, 2], [3]]}', "Expecting tensor size: 2 but got: 1"),
    ('{"instances": [[1, 2], [[3, 4]]]}', "Expecting shape [2] but got: [1,2]"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED_SHAPES)
def test_ragged_lists_are_refused(text, message):
    assert message in refusal(text, x="float")


REFUSED_FORMS = [
    ("", "JSON Parse error: "),
    ('{"instances": [1}', "JSON Parse error: "),
    ("[" * 100_000, "JSON Parse error: "),
    ("\xff", "JSON Parse error: Invalid value. at offset: 0"),
    ("[1]", "JSON Value: [1] Is not object"),
    ("{}", "Missing 'inputs' or 'instances' key"),
    ('{"inputs": 1, "instances": [1]}', "expecting only one of 'inputs' or 'instances'"),
    ('{"instances": 1}', "Expecting 'instances' to be an list/array"),
    ('{"instances": []}', "No values in 'instances' array"),
    ('{"inputs": [1]}', "inputs is a plain value/list, but expecting an object"),
    ('{"instances": [1]}', "instances is a plain list, but expecting list of objects"),
    ('{"inputs": {"x": [1]}}', "Missing named input: y in 'inputs' object."),
    ('{"instances": [{"x": 1}]}', "keys must be equal to: x,y"),
    ('{"instances": [{"x": 1, "y": 2}, {"x": 1}]}', "Failed to process element: 1 of 'instances'"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED_FORMS)
def test_malformed_requests_are_refused(text, message):
    assert message in refusal(text, x="float", y="float")


def test_the_signature_is_named_by_a_string_or_not_at_all():
    assert rest_json.read_signature_name({"signature_name": "pets"}) == "pets"
    assert rest_json.read_signature_name({}) == ""
    with pytest.raises(RequestError, match="must be a string value"):
        rest_json.read_signature_name({"signature_name": 1})


def test_integers_lose_the_bits_that_do_not_fit():
    # As in the server, which keeps narrow integers in 32 bits: 300 = 256 + 44.
    assert read('{"inputs": [300, -1]}', x="uint8")["x"].tolist() == [44, 255]


@pytest.mark.parametrize("text", ["/w==", "/w", " /\nw = =", "/w.."])
def test_padding_and_white_space_of_base64_are_free(text):
    assert read(json.dumps({"inputs": {"b64": text}}), x="string")["x"].item() == b"\xff"


@pytest.mark.parametrize("text", ["/", "/w=", "/w===", "/w=w", "/*"])
def test_broken_base64_is_refused(text):
    assert refusal(json.dumps({"inputs": {"b64": text}}), x="string") == "Unable to base64 decode"


def write(row_format, **outputs):
    return json.loads(rest_json.write_tensors(outputs, row_format=row_format))


def test_several_outputs_make_objects():
    outputs = {"p": np.array([[1, 2], [3, 4]]), "q": np.array([5, 6])}
    assert write(True, **outputs) == {"predictions": [{"p": [1, 2], "q": 5}, {"p": [3, 4], "q": 6}]}
    assert write(False, **outputs) == {"outputs": {"p": [[1, 2], [3, 4]], "q": [5, 6]}}


def test_a_single_output_has_no_name():
    assert write(True, y=np.array([1, 2])) == {"predictions": [1, 2]}
    assert write(False, y=np.array([1, 2])) == {"outputs": [1, 2]}


def test_a_float_is_written_with_six_digits_or_nine():
    # Widened to a double, float32 0.2 is 0.20000000298023224.
    text = rest_json.write_tensors({"y": np.array([0.2, 2.0, np.nan], np.float32)}, row_format=True)
    assert text == '{"predictions": [0.2, 2.0, NaN]}'


def test_floats_of_every_size_are_read_back_unchanged():
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 20_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], np.float32([0, 1e-45, 3.4e38, 16777217])])
    text = rest_json.write_tensors({"y": values}, row_format=True)
    read_back = np.array(json.loads(text)["predictions"], np.float32)
    np.testing.assert_array_equal(read_back, values)


def test_digits_are_those_of_the_server():
    some = np.float32([0.1, 1 / 3, 1e-5, 123.456, 3.3e12, 12345678, 89806704, 1e-45, 2e-13 / 3])
    assert rest_json.write_tensors({"y": some}, row_format=True) == (
        '{"predictions": [0.1, 0.333333343, 1e-05, 123.456, 3300000000000.0, 12345678.0, '
        "89806700.0, 1.4013e-45, 6.666667e-14]}"
    )


def test_strings_are_text_unless_their_name_says_bytes():
    value = np.array([b"\xff"], object)
    assert write(False, y_bytes=value) == {"outputs": [{"b64": "/w=="}]}
    assert write(False, y=np.array(["é".encode()], object)) == {"outputs": ["é"]}
    assert write(False, y=value) == {"outputs": ["\udcff"]}  # the byte itself, once it is encoded


def test_outputs_that_json_cannot_represent_are_refused():
    with pytest.raises(RequestError, match="for tensor type: half"):
        write(True, y=np.zeros(1, np.float16))
    assert write(True, y=np.zeros(0, np.float16)) == {"predictions": []}
    with pytest.raises(RequestError, match="y has no shape information"):
        write(True, y=np.float16(1.0))
    with pytest.raises(RequestError, match="inconsistent batch size: 2 expecting: 1"):
        write(True, p=np.zeros(1), q=np.zeros(2))
