"""Ollama's templates in Jinja, rendered as transformers renders chat templates."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from mlxmath.weights.ollama_template import CannotTranslateError, to_jinja

USER = {"role": "user", "content": "What is {{ 1 + 1 }}?"}
ANSWER = {"role": "assistant", "content": "2"}
SYSTEM = {"role": "system", "content": "Be short."}
CHATML = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
MESSAGES = """{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if .Content }}{{ .Content }}{{ else if .ToolCalls }}<tool>{{ range .ToolCalls }}{{ .Function.Name }}{{ end }}{{ end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- else }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ end }}
{{- end }}"""  # noqa: E501
LLAMA2 = "[INST] {{ if .System }}<<SYS>>\n{{ .System }}\n<</SYS>>\n\n{{ end }}{{ .Prompt }} [/INST]"


def rendered(template: str, *messages: dict[str, Any]) -> str:
    return _compile_jinja_template(to_jinja(template)).render(messages=list(messages), add_generation_prompt=True)


def test_single_turns() -> None:
    user = "<|im_start|>user\nWhat is {{ 1 + 1 }}?<|im_end|>\n"
    answer = "<|im_start|>assistant\n2<|im_end|>\n"
    system = "<|im_start|>system\nBe short.<|im_end|>\n"
    assert rendered(CHATML, USER) == user + "<|im_start|>assistant\n"
    assert rendered(CHATML, SYSTEM, USER) == system + user + "<|im_start|>assistant\n"
    assert rendered(CHATML, SYSTEM, USER, ANSWER) == system + user + answer
    assert rendered(CHATML, USER, ANSWER, USER) == user + answer + user + "<|im_start|>assistant\n"


def test_without_a_place_for_the_answer() -> None:
    first = "[INST] <<SYS>>\nBe short.\n<</SYS>>\n\nWhat is {{ 1 + 1 }}? [/INST]"
    assert rendered(LLAMA2, SYSTEM, USER) == first
    assert rendered(LLAMA2, SYSTEM, USER, ANSWER, USER) == first + "2[INST] What is {{ 1 + 1 }}? [/INST]"


def test_messages() -> None:
    user = "<|im_start|>user\nWhat is {{ 1 + 1 }}?<|im_end|>\n"
    assert rendered(MESSAGES, SYSTEM, USER) == (
        "<|im_start|>system\nBe short.<|im_end|>\n" + user + "<|im_start|>assistant\n"
    )
    assert rendered(MESSAGES, USER, ANSWER, USER) == (
        user + "<|im_start|>assistant\n2<|im_end|>\n" + user + "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ with .System }}{{ . }}{{ end }}", "with .System"),
        ("{{ currentDate }}", "the function currentDate"),
        ("{{ .Prompt | upper }}", "Prompt | upper"),
        ("{{ if .Prompt }}x", "without an end"),
        ("{{ if }}x{{ end }}", "without a condition"),
        ("{{ if .Prompt }}x{{ else }}y{{ else }}z{{ end }}", "without an end"),
        ("{{ .Prompt", "does not end"),
        ('{{ if (eq .Prompt "a" }}x{{ end }}', "parenthesis that does not end"),
        ("{{ template `x` }}", "template"),
        ("{{ if .Prompt }}" * 60, "too deep"),
        ("{{ " + "(" * 60 + " }}", "too deep"),
        ("{{ " * 16_000, "does not end"),  # each of them was followed through all the rest
        ("x" * 60_000, "more than 50,000 characters"),
    ],
)
def test_what_is_not_translated(template: str, what: str) -> None:
    with pytest.raises(CannotTranslateError) as caught:
        to_jinja(template)
    assert what in str(caught.value)


OLLAMA = """
package main
import ("bytes"; "encoding/json"; "fmt"; "os"; "strings"; "text/template")
type Message struct { Role, Content string; ToolCalls []string }
func check(err error) { if err != nil { panic(err) } }
func main() {
    var cases []struct { Template string; Messages []Message }
    check(json.NewDecoder(os.Stdin).Decode(&cases))
    var results []string
    for _, c := range cases {
        parsed := template.Must(template.New("").Parse(c.Template))
        var out bytes.Buffer
        if strings.Contains(c.Template, ".Messages") {
            system := ""
            for _, m := range c.Messages { if m.Role == "system" { system = m.Content } }
            check(parsed.Execute(&out, map[string]any{"Messages": c.Messages, "System": system}))
        } else {
            if !strings.Contains(c.Template, ".Response") {
                parsed = template.Must(template.New("").Parse(c.Template + "{{ .Response }}"))
            }
            system, prompt, response := "", "", ""
            execute := func() {
                check(parsed.Execute(&out, map[string]any{"System": system, "Prompt": prompt, "Response": response}))
                system, prompt, response = "", "", ""
            }
            for _, m := range c.Messages {
                switch m.Role {
                case "system": if prompt != "" || response != "" { execute() }; system = m.Content
                case "user": if response != "" { execute() }; prompt = m.Content
                case "assistant": response = m.Content
                }
            }
            mark := "@@END@@"
            if response == "" { response = mark }
            execute()
            results = append(results, strings.SplitN(out.String(), mark, 2)[0])
            continue
        }
        results = append(results, out.String())
    }
    text, err := json.Marshal(results)
    check(err)
    fmt.Println(string(text))
}
"""


def test_as_go_renders_them(tmp_path: Path) -> None:
    """Every conversation of up to 4 messages, in each template, by Go's text/template itself."""
    if shutil.which("go") is None:
        pytest.skip("needs Go")
    talks = [list(each) for n in (2, 3, 4) for each in itertools.product((SYSTEM, USER, ANSWER), repeat=n)]
    cases = [(template, talk) for template in (CHATML, MESSAGES, LLAMA2) for talk in talks]
    (tmp_path / "main.go").write_text(OLLAMA)
    given = json.dumps([{"Template": template, "Messages": talk} for template, talk in cases])
    command = ["go", "run", str(tmp_path / "main.go")]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, timeout=300)
    for (template, talk), want in zip(cases, json.loads(done.stdout), strict=True):
        assert rendered(template, *talk) == want
