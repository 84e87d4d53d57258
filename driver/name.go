package driver

import "regexp"

// maxName is the longest image name that krbd maps: RBD_MAX_IMAGE_NAME_LEN of
// the kernel leaves 96 bytes.
const maxName = 96

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// ValidName tells whether a volume, and so an image, may bear the name. The
// rule is Docker's own for volume names.
func ValidName(name string) bool {
	return len(name) <= maxName && validName.MatchString(name)
}

func checkName(name string) error {
	switch {
	case name == "":
		return invalidf("name: it is empty")
	case len(name) > maxName:
		return invalidf("name: it has %d bytes, at most %d are allowed", len(name), maxName)
	case !validName.MatchString(name):
		return invalidf("name %.40q: allowed are letters, digits, '_', '.' and '-', and the first must be a letter or a digit", name)
	}
	return nil
}
