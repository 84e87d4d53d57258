package rbd

import (
	"fmt"
	"os"
	"strings"
)

// keyOf finds a user's key where librados does (Ceph, src/auth/KeyRing.cc): the
// options key and keyfile of the configuration come before the keyrings. Of those
// it takes the first that has the key; librados the first that is there, which has
// it, or it would not have connected.
func keyOf(user string, option func(name string) (string, error)) (string, error) {
	key, err := option("key")
	if err != nil || key != "" {
		return key, err
	}
	file, err := option("keyfile")
	if err != nil {
		return "", err
	}
	if file != "" {
		text, err := os.ReadFile(file)
		return strings.TrimSpace(string(text)), err
	}
	files, err := option("keyring")
	if err != nil {
		return "", err
	}
	names := fileNames(files)
	for _, path := range names {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // Ceph's default names four files, of which one exists
		}
		if key := keyIn(user, string(text)); key != "" {
			return key, nil
		}
	}
	return "", fmt.Errorf("no key of %s in %s", user, strings.Join(names, ", "))
}

// fileNames splits a list of files as Ceph does (get_str_vec in src/common/str_list.cc).
func fileNames(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(";,= \t", r) })
}

// keyIn finds a user's key in a keyring; "" if it is not there. The form is that of
// ceph.conf (Ceph, src/common/ConfUtils.cc): # and ; begin a comment wherever they
// are, but for those in quotes or behind a backslash.
func keyIn(user, text string) (key string) {
	section := ""
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", "")) {
		line = uncomment(line)
		if strings.HasPrefix(line, "[") {
			section = strings.TrimSpace(strings.Trim(line, "[]"))
			continue
		}
		name, value, _ := strings.Cut(line, "=")
		if section == user && strings.TrimSpace(name) == "key" {
			key = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return key
}

// uncomment takes a comment, and the blanks around the rest, off a line.
func uncomment(line string) string {
	var quote rune
	escaped := false
	for i, r := range line {
		switch {
		case escaped:
			escaped = false
		case r == '\\':
			escaped = true
		case quote != 0:
			if r == quote {
				quote = 0
			}
		case r == '"' || r == '\'':
			quote = r
		case r == '#' || r == ';':
			return strings.TrimSpace(line[:i])
		}
	}
	return strings.TrimSpace(line)
}
