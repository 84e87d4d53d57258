package backend

import "regexp"

// MaxName is the longest image name that krbd maps: RBD_MAX_IMAGE_NAME_LEN of
// the kernel leaves 96 bytes.
const MaxName = 96

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// ValidName tells whether a volume, and so an image, may bear the name. The
// rule is Docker's own for volume names.
func ValidName(name string) bool {
	return len(name) <= MaxName && validName.MatchString(name)
}

// CheckName says, as an ErrInvalid, why ValidName says no.
func CheckName(name string) error {
	switch {
	case name == "":
		return Invalidf("name: it is empty")
	case len(name) > MaxName:
		return Invalidf("name: it has %d bytes, at most %d are allowed", len(name), MaxName)
	case !validName.MatchString(name):
		return Invalidf("name %.40q: allowed are letters, digits, '_', '.' and '-', and the first must be a letter or a digit", name)
	}
	return nil
}
