// Renders conversations as Ollama does (its template/template.go): text/template, missing keys as zero values,
// neighbouring messages of one role joined, .System and .Messages given.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role    string
	Content string
}

func main() {
	var input struct {
		Template      string
		Conversations [][]message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(input.Template))
	texts := []string{}
	for _, conversation := range input.Conversations {
		var system []string
		var joined []*message
		for i := range conversation {
			one := conversation[i]
			if one.Role == "system" {
				system = append(system, one.Content)
			}
			if last := len(joined) - 1; last >= 0 && joined[last].Role == one.Role {
				joined[last].Content += "\n\n" + one.Content
			} else {
				joined = append(joined, &one)
			}
		}
		var text bytes.Buffer
		values := map[string]any{"System": strings.Join(system, "\n\n"), "Messages": joined, "Response": ""}
		if err := parsed.Execute(&text, values); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		panic(err)
	}
}
