package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Where curl is installed, only this test runs get.
func TestGet(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("hello\n"))
	}))
	defer server.Close() // it listens on 127.0.0.1
	for _, test := range []struct {
		args      []string
		code      int
		out, errs string // errs is how the error begins
	}{
		{[]string{"get", server.URL}, 0, "hello\n", ""},
		{[]string{"get", "-4", "-m", "5", server.URL}, 0, "hello\n", ""},
		{[]string{"get", "-6", server.URL}, 1, "", "get: "},
		{[]string{"get", "-x", server.URL}, 1, "", "get: flag provided but not defined"},
		{[]string{}, 2, "", "usage: "},
	} {
		var out, errs bytes.Buffer
		code := run(t.Context(), test.args, &out, &errs)
		if code != test.code || out.String() != test.out || !strings.HasPrefix(errs.String(), test.errs) {
			t.Errorf("demo %q: status %d, output %q, errors %q", test.args, code, &out, &errs)
		}
	}
}

func TestTranscript(t *testing.T) {
	var out bytes.Buffer
	tr := transcript{w: &out}
	tr.step("A step.")
	tr.command("$", "pinproxy", "--rule", "*.bank.example:443=63999 busy=fail", "&")
	tr.output(fold(strings.Repeat("twelve=bytes ", 8) + "end\n"))
	const want = `
1. A step.

   client$ pinproxy --rule '*.bank.example:443=63999 busy=fail' &
   twelve=bytes twelve=bytes twelve=bytes twelve=bytes twelve=bytes twelve=bytes twelve=bytes
       twelve=bytes end
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", &out, want)
	}
}
